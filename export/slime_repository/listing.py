"""What a repository holds, segmenter by segmenter, and what a running server says of each. Changes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from slime_repository import layout, record, shared_store
from slime_repository.errors import RepositoryError

# Of a server: model -> version -> READY, LOADING, UNLOADING or UNAVAILABLE.
States = Mapping[str, Mapping[int, str]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One segmenter.

    bytes: of the version that serves, without what it shares with others. versions: those kept. rolled_back_to: the
    version whose content serves again, else None. created: when it was optimised, published: when this version was
    (UTC, ISO 8601). state: on the server, None where none was asked.
    """

    name: str
    version: int
    parts: tuple[str, ...]
    precision: str
    form: str
    maps: str
    encoder: str
    format: str
    bytes: int
    created: str
    published: str
    rolled_back_to: int | None
    versions: tuple[int, ...]
    state: str | None


def rows(repository: Path, states: States | None = None) -> list[Row]:
    """Return the repository's segmenters by name; `states`: of a server's models. Raises RepositoryError."""
    layout.require_repository(repository)
    baked = [_baked(repository, name, states) for name in layout.segmenters(repository)]
    shared = [_shared(repository, name, states) for name in shared_store.names(repository)]
    return sorted([*baked, *shared], key=lambda row: row.name)


def _baked(repository: Path, name: str, states: States | None) -> Row:
    folder = repository / name
    version = layout.live_version(folder)
    if version is None:
        raise RepositoryError(f"segmenter {name}: has no version in {repository}; publish it with export/build.py")
    told, facts = layout.parameters(folder), record.facts(folder / str(version))
    pins = layout.pinned(folder)
    own = [f"{model}/{pins[model]}" for model in layout.unets(repository, name) if model in pins]
    files = [path for each in (*own, f"{name}/{version}") for path in (repository / each).rglob("*") if path.is_file()]
    return Row(
        name=name,
        version=version,
        parts=tuple(json.loads(told.get("parts", "[]"))),
        precision=told.get("precision", "fp32"),
        form=told.get("form", "baked"),
        maps=told.get("maps", "averaged"),
        encoder=told.get("encoder", "vae"),
        format=told.get("format", "onnx"),
        bytes=sum(path.stat().st_size for path in files),
        created=told.get("created", ""),
        published=facts.get("published", ""),
        rolled_back_to=facts.get("content_of"),
        versions=tuple(layout.versions(folder)),
        state=None if states is None else _state(states.get(name, {}), version),
    )


def _shared(repository: Path, name: str, states: States | None) -> Row:
    """Tell of the segmenter's file alone: it serves as soon as its group does, without being loaded."""
    told = shared_store.entry(repository, name).description
    group = str(told["model"])
    return Row(
        name=name,
        version=int(told[shared_store.VERSION]),
        parts=tuple(told["parts"]),
        **{key: str(told[key]) for key in ("precision", "form", "maps", "encoder", "format", "created")},
        bytes=shared_store.store_of(repository).path(name).stat().st_size,
        published=str(told[shared_store.PUBLISHED]),
        rolled_back_to=told.get(shared_store.CONTENT_OF),
        versions=tuple(shared_store.versions(repository, name)),
        state=None if states is None else _state(states.get(group, {}), layout.live_version(repository / group) or 0),
    )


def _state(states: Mapping[int, str], version: int) -> str:
    """Return ready, or what else; of a server that has another version ready, which."""
    ready = [each for each, state in states.items() if state == "READY"]
    if version in ready:
        return "ready"
    if ready:
        return f"ready with version {max(ready)}"
    return states.get(version, max(states.values(), default="UNAVAILABLE")).lower()
