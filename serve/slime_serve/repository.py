"""What a model repository holds: its segmenters, and the models each one needs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slime_repository.contract import SEGMENTERS
from slime_repository.shared_contract import STORE, is_group
from slime_serve.errors import UsageError
from slime_store import Store, StoreError

# Triton hands this path to a shell without quoting it.
_UNSAFE = re.compile(r"[^A-Za-z0-9_./+,:@=-]")


@dataclass(frozen=True, kw_only=True)
class Served:
    """What an inference is asked of: an ensemble, and in the shared form the segmenter it is to look up."""

    ensemble: str
    segmenter: str | None = None

    @property
    def name(self) -> str:
        return self.segmenter or self.ensemble


@dataclass(frozen=True, kw_only=True)
class Repository:
    """``segmenters``: names of all; ``ensembles``: the models behind them; ``parts``: of every model those are made of.

    ``probes``: what to ask so that every model has answered: each baked segmenter, one shared one of each group.
    ``configs``: what each model's config.pbtxt says, as protobuf messages.
    """

    path: Path
    segmenters: tuple[str, ...]
    ensembles: tuple[str, ...]
    parts: tuple[str, ...]
    probes: tuple[Served, ...]
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
    steps = {name: config.ensemble_scheduling.step for name, config in configs.items()}
    ensembles, shared = tuple(name for name in steps if steps[name]), _shared(resolved)
    baked = tuple(name for name in ensembles if not is_group(name))
    if not (baked or shared):
        raise UsageError(f"repository {path}: no segmenters in it; publish one with export/build.py")
    parts = tuple(dict.fromkeys(step.model_name for each in steps.values() for step in each))
    if missing := [part for part in parts if part not in configs]:
        raise UsageError(f"repository {path}: has no {missing[0]}, which a segmenter is made of; publish it again")
    of_groups = {group: Served(ensemble=group, segmenter=name) for name, group in shared.items() if group in ensembles}
    return Repository(
        path=resolved,
        segmenters=(*baked, *shared),
        ensembles=ensembles,
        parts=parts,
        probes=(*(Served(ensemble=name) for name in baked), *of_groups.values()),
        configs=configs,
    )


def _shared(path: Path) -> dict[str, str]:
    """The group of every shared segmenter."""
    store = Store(path / SEGMENTERS / STORE)
    try:
        return {name: str(store.get(name).description["model"]) for name in store.names()}
    except StoreError as error:
        raise UsageError(f"repository {path}: {error}") from error


def _parse(config: Path) -> Any:
    # Imported here so that usage errors need no server packages.
    from google.protobuf import text_format  # type: ignore[import-untyped]
    from tritonclient.grpc import model_config_pb2

    try:
        return text_format.Parse(config.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"repository: {config} cannot be read ({reason}); publish the segmenter again") from error
