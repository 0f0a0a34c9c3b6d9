"""What a repository holds, segmenter by segmenter, and what a running server says of each. Changes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from slime_export.errors import ExportError
from slime_export.publish import shared_store
from slime_export.publish.server_control import READY, UNAVAILABLE, Server
from slime_repository import layout, record
from slime_store.store import read

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


def rows(repository: Path, server: Server | None = None) -> list[Row]:
    """The repository's segmenters by name. Raises ExportError, or ServerError."""
    layout.require_repository(repository)
    states = server.states() if server else None
    baked = [_row(repository, name, states) for name in layout.segmenters(repository)]
    shared = [_shared_row(repository, name, states) for name in shared_store.names(repository)]
    return sorted([*baked, *shared], key=lambda row: row.name)


def as_json(found: list[Row]) -> str:
    return json.dumps([asdict(row) for row in found], indent=2, ensure_ascii=False)


def table(found: list[Row]) -> str:
    """For people; without a server, no column of states."""
    from tabulate import tabulate

    asked = any(row.state is not None for row in found)
    headers = ["name", "version", "parts", "precision", "form", "size", "created", "kept"] + ["state"] * asked
    return str(tabulate([_cells(row, asked) for row in found], headers, disable_numparse=True))


def _cells(row: Row, asked: bool) -> list[str]:
    version = f"{row.version} (= {row.rolled_back_to})" if row.rolled_back_to else str(row.version)
    parts = f"{len(row.parts)}: {' '.join(row.parts)}"
    shown = [
        row.name,
        version,
        parts if len(parts) <= 40 else parts[:39] + "…",
        row.precision,
        f"{row.form}, {row.maps}",
        size(row.bytes),
        row.created[:16].replace("T", " "),
        " ".join(map(str, row.versions)),
    ]
    return shown + [row.state or ""] * asked


def size(count: float) -> str:
    """Bytes, readable."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _row(repository: Path, name: str, states: States | None) -> Row:
    folder = repository / name
    version = layout.live_version(folder)
    if version is None:
        raise ExportError(f"segmenter {name}: has no version in {repository}; publish it again with export/build.py")
    told = layout.parameters(folder)
    facts = record.facts(folder / str(version))
    return Row(
        name=name,
        version=version,
        parts=tuple(json.loads(told.get("parts", "[]"))),
        precision=told.get("precision", "fp32"),
        form=told.get("form", "baked"),
        maps=told.get("maps", "averaged"),
        encoder=told.get("encoder", "vae"),
        format=told.get("format", "onnx"),
        bytes=_bytes(repository, name, version),
        created=told.get("created", ""),
        published=facts.get("published", ""),
        rolled_back_to=facts.get("content_of"),
        versions=tuple(layout.versions(folder)),
        state=None if states is None else _state(states.get(name, {}), version),
    )


def _shared_row(repository: Path, name: str, states: States | None) -> Row:
    """Of its file alone: it serves as soon as its group does, without being loaded."""
    path = shared_store.store_of(repository).path(name)
    told = read(path).description
    group = str(told["model"])
    return Row(
        name=name,
        version=int(told[shared_store.VERSION]),
        parts=tuple(told["parts"]),
        **{key: str(told[key]) for key in ("precision", "form", "maps", "encoder", "format", "created")},
        bytes=path.stat().st_size,
        published=str(told[shared_store.PUBLISHED]),
        rolled_back_to=told.get(shared_store.CONTENT_OF),
        versions=tuple(shared_store.numbers(repository, name)),
        state=None if states is None else _state(states.get(group, {}), layout.live_version(repository / group) or 0),
    )


def _bytes(repository: Path, name: str, version: int) -> int:
    pins = layout.pinned(repository / name)
    own = [f"{model}/{pins[model]}" for model in layout.unets(repository, name) if model in pins] + [
        f"{name}/{version}"
    ]
    return sum(path.stat().st_size for folder in own for path in (repository / folder).rglob("*") if path.is_file())


def _state(states: Mapping[int, str], version: int) -> str:
    """ready, or what else; a server that has another version ready says which."""
    ready = [each for each, state in states.items() if state == READY]
    if version in ready:
        return "ready"
    if ready:
        return f"ready with version {max(ready)}"
    return states.get(version, max(states.values(), default=UNAVAILABLE)).lower()
