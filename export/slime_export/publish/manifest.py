"""manifest.json of a repository: SHA-256 and size of every file, so that the launcher serves only what was published.

    {"format": 1,
     "files":    {"car_unet/3/model.onnx": {"sha256": "9f2c…", "bytes": 3441920}, …},
     "changing": {"car/config.pbtxt": {"sha256": "41d0…", "bytes": 2120}, "car/1/mask.png": null, …}}

"files" is what the repository held when nothing was under way. "changing" is written before each change of a
publication and emptied at its end: what each path may be from then on, null for not there. So a publication that was
killed leaves a manifest that is true of every state it can have left. Paths are relative, with forward slashes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from slime_export.errors import ExportError

FILE = "manifest.json"
FORMAT = 1
CACHE = "__pycache__"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What one file is."""

    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """`changing` has None for a file that is to leave."""

    files: Mapping[str, Entry] = field(default_factory=dict)
    changing: Mapping[str, Entry | None] = field(default_factory=dict)

    def announced(self, entries: Mapping[str, Entry | None]) -> Manifest:
        """Before a change: these paths may be so as well."""
        return Manifest(files=self.files, changing={**self.changing, **entries})

    def settled(self) -> Manifest:
        """After the changes."""
        after = {**self.files, **self.changing}
        return Manifest(files={path: entry for path, entry in sorted(after.items()) if entry})

    def text(self) -> str:
        """The file's content."""
        facts = {"format": FORMAT, "files": _as_json(self.files), "changing": _as_json(self.changing)}
        return json.dumps(facts, separators=(",", ":")) + "\n"

    def under(self, path: str) -> dict[str, Entry]:
        """The files inside a folder."""
        return {name: entry for name, entry in self.files.items() if name.startswith(f"{path}/")}


def read(repository: Path, models: Callable[[], Iterable[Path]]) -> Manifest:
    """The repository's manifest, with what a killed publication left in "changing" settled by what is there.

    Where there is none, one of the folders that `models` gives, as they are: a repository of before there were
    manifests. Raises ExportError for one that cannot be read.
    """
    path = repository / FILE
    if not path.exists():
        return Manifest(files=entries(repository, models()))
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if facts["format"] != FORMAT:
            raise ValueError(f"format {facts['format']}, expected {FORMAT}")
        found = Manifest(files=_of_json(facts["files"]), changing=_of_json(facts["changing"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(
            f"manifest {path}: cannot be read ({error}); if the files are right, delete it and run again"
        ) from error
    return _by_what_is_there(repository, found) if found.changing else found


def entries(root: Path, folders: Iterable[Path]) -> dict[str, Entry]:
    """Path from `root` -> entry, for every file in `folders` (or for those that are files)."""
    files = [path for folder in folders for path in ([folder] if folder.is_file() else sorted(folder.rglob("*")))]
    return {path.relative_to(root).as_posix(): entry(path) for path in files if path.is_file() and _counts(path)}


def entry(path: Path) -> Entry:
    """Reads all of the file: a second for each gigabyte or two."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Entry(sha256=digest, bytes=path.stat().st_size)


def require(repository: Path, manifest: Manifest, folder: str) -> None:
    """Raises ExportError unless the folder, a path in the repository, has just what the manifest says."""
    wanted = manifest.under(folder)
    got = entries(repository, [repository / folder])
    different = sorted(path for path in wanted.keys() | got.keys() if wanted.get(path) != got.get(path))
    if different:
        raise ExportError(
            f"repository {repository}: {different[0]} is not what was published (its SHA-256 is not the manifest's); "
            "put the file back, or publish again"
        )


def _by_what_is_there(repository: Path, found: Manifest) -> Manifest:
    there = {path: repository / path for path in found.changing}
    return found.announced({path: entry(file) if file.is_file() else None for path, file in there.items()}).settled()


def _counts(path: Path) -> bool:
    return CACHE not in path.parts


def _as_json(entries: Mapping[str, Entry | None]) -> dict[str, object]:
    return {path: vars(entry) if entry else None for path, entry in entries.items()}


def _of_json(facts: Mapping[str, dict[str, object] | None]) -> dict[str, Entry]:
    # None goes through: only "changing" has it.
    return {path: Entry(**fact) if fact else None for path, fact in facts.items()}  # type: ignore[arg-type,misc]
