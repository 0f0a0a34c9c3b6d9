"""What a model repository holds for a server: its segmenters, and the models that each one needs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slime_repository import shared_store
from slime_repository.config import parsed
from slime_repository.errors import RepositoryError
from slime_repository.layout import CONFIG
from slime_repository.shared_contract import is_group

# Triton hands this path to a shell without quoting it.
_UNSAFE = re.compile(r"[^A-Za-z0-9_./+,:@=-]")


@dataclass(frozen=True, kw_only=True)
class Served:
    """What an inference is asked of: an ensemble, and in the shared form the segmenter that it is to look up."""

    ensemble: str
    segmenter: str | None = None

    @property
    def name(self) -> str:
        return self.segmenter or self.ensemble


@dataclass(frozen=True, kw_only=True)
class Repository:
    """``segmenters``: names of all; ``ensembles``: the models behind them; ``parts``: of every model those are made of.

    ``probes``: what to ask so that every model has answered: each baked segmenter, and one shared one of each group.
    ``configs``: what each model's config.pbtxt says, as protobuf messages, which are not to be changed.
    """

    path: Path
    segmenters: tuple[str, ...]
    ensembles: tuple[str, ...]
    parts: tuple[str, ...]
    probes: tuple[Served, ...]
    configs: Mapping[str, Any]


def read(path: Path) -> Repository:
    """Return the repository at ``path``, all of which must be servable.

    Raises RepositoryError for a folder that is missing, has an unusable name, holds no segmenters, or cannot be read.
    """
    if not path.is_dir():
        raise RepositoryError(f"repository {path}: no such folder; publish a segmenter into it with export/build.py")
    resolved = path.resolve()
    if unsafe := _UNSAFE.search(str(resolved)):
        raise RepositoryError(
            f"repository {resolved}: the path has {unsafe.group()!r}, which Triton cannot handle; move the folder"
        )
    configs = {config.parent.name: _parsed(config) for config in sorted(resolved.glob(f"*/{CONFIG}"))}
    steps = {name: config.ensemble_scheduling.step for name, config in configs.items()}
    ensembles = tuple(name for name in steps if steps[name])
    baked = tuple(name for name in ensembles if not is_group(name))
    shared = {name: str(told["model"]) for name, told in shared_store.descriptions(resolved).items()}
    if not (baked or shared):
        raise RepositoryError(f"repository {path}: no segmenters in it; publish one with export/build.py")
    parts = tuple(dict.fromkeys(step.model_name for each in steps.values() for step in each))
    if missing := [part for part in parts if part not in configs]:
        raise RepositoryError(f"repository {path}: has no {missing[0]}, which a segmenter is made of; publish it again")
    of_groups = {group: Served(ensemble=group, segmenter=name) for name, group in shared.items() if group in ensembles}
    return Repository(
        path=resolved,
        segmenters=(*baked, *shared),
        ensembles=ensembles,
        parts=parts,
        probes=(*(Served(ensemble=name) for name in baked), *of_groups.values()),
        configs=configs,
    )


def _parsed(config: Path) -> Any:
    try:
        return parsed(config.read_text(encoding="utf-8"))
    except (RepositoryError, UnicodeDecodeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise RepositoryError(f"repository: {config} cannot be read ({reason}); publish the segmenter again") from error
