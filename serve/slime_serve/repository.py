"""What a model repository holds: its segmenters, and the models each one needs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slime_serve.errors import UsageError

# Triton hands this path to a shell without quoting it.
_UNSAFE = re.compile(r"[^A-Za-z0-9_./+,:@=-]")


@dataclass(frozen=True, kw_only=True)
class Repository:
    """``segmenters``: names of the ensembles; ``parts``: of every model they are made of, once each; ``configs``: what
    each model's config.pbtxt says, as protobuf messages."""

    path: Path
    segmenters: tuple[str, ...]
    parts: tuple[str, ...]
    configs: Mapping[str, Any]


def read(path: Path) -> Repository:
    """The repository at ``path``. UsageError: missing, of an unusable name, without segmenters, or unreadable."""
    if not path.is_dir():
        raise UsageError(f"repository {path}: no such folder; publish a segmenter into it with export/build.py")
    resolved = path.resolve()
    if unsafe := _UNSAFE.search(str(resolved)):
        raise UsageError(
            f"repository {resolved}: the path has {unsafe.group()!r}, which Triton cannot handle; move the folder"
        )
    configs = {config.parent.name: _parse(config) for config in sorted(resolved.glob("*/config.pbtxt"))}
    ensembles = {name: config.ensemble_scheduling.step for name, config in configs.items()}
    segmenters = tuple(name for name, steps in ensembles.items() if steps)
    if not segmenters:
        raise UsageError(f"repository {path}: no segmenters in it; publish one with export/build.py")
    parts = tuple(dict.fromkeys(step.model_name for steps in ensembles.values() for step in steps))
    if missing := [part for part in parts if part not in configs]:
        raise UsageError(f"repository {path}: has no {missing[0]}, which a segmenter is made of; publish it again")
    return Repository(path=resolved, segmenters=segmenters, parts=parts, configs=configs)


def _parse(config: Path) -> Any:
    # Imported here so that usage errors need no server packages.
    from google.protobuf import text_format  # type: ignore[import-untyped]
    from tritonclient.grpc import model_config_pb2

    try:
        return text_format.Parse(config.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"repository: {config} cannot be read ({reason}); publish the segmenter again") from error
