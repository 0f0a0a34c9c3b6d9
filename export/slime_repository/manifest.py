"""manifest.json of a repository: SHA-256 and size of every file, so that only what was published is served.

    {"format": 1,
     "files":    {"car_unet/3/model.onnx": {"sha256": "9f2c…", "bytes": 3441920}, …},
     "changing": {"car/config.pbtxt": {"sha256": "41d0…", "bytes": 2120}, "car/1/mask.png": null, …}}

"files" is what the repository held when nothing was under way. "changing" is written before each change of a
publication and emptied at its end: what each path may be from then on, null for not there. So a publication that was
killed leaves a manifest that is true of every state it can have left. Paths are relative, with forward slashes.

A version's folder that the manifest has a file of is complete; models that it has nothing of are not looked at. This
finds damage and half copies; it is no signature.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

from slime_repository.errors import RepositoryError
from slime_repository.layout import CACHE

FILE = "manifest.json"
FORMAT = 1
# Hashing more bytes than this takes seconds, which want a word of why.
LARGE = 2 * 1024**3
_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The SHA-256 and the size in bytes of one file."""

    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """`changing` has None for a file that is to leave."""

    files: Mapping[str, Entry] = field(default_factory=dict)
    changing: Mapping[str, Entry | None] = field(default_factory=dict)

    def announced(self, entries: Mapping[str, Entry | None]) -> Manifest:
        """Return the manifest during a change: each of these paths may have this content as well.

        Of a path that was announced before, that change is done by now: it is as announced then, or as now.
        """
        done = {path: self.changing[path] for path in entries if path in self.changing}
        files = {path: entry for path, entry in {**self.files, **done}.items() if entry} if done else self.files
        return Manifest(files=files, changing={**self.changing, **entries})

    def settled(self) -> Manifest:
        """Return the manifest once the changes are made."""
        after = {**self.files, **self.changing}
        return Manifest(files={path: entry for path, entry in sorted(after.items()) if entry})

    def allowed(self, path: str) -> list[Entry | None]:
        """Return all that a file may be; None is for not there."""
        return [told[path] for told in (self.files, self.changing) if path in told] + [None] * (path not in self.files)

    def text(self) -> str:
        """Return the file's content."""
        facts = {
            "format": FORMAT,
            "files": {path: asdict(entry) for path, entry in self.files.items()},
            "changing": {path: asdict(entry) if entry else None for path, entry in self.changing.items()},
        }
        return json.dumps(facts, separators=(",", ":")) + "\n"


def read(repository: Path, models: Callable[[], Iterable[Path]]) -> Manifest:
    """Return the repository's manifest; what a killed publication left in "changing" is settled by what is there.

    Where there is none, as in repositories made before there were manifests, one of the folders that `models` gives.
    Raises RepositoryError for one that cannot be read.
    """
    if not (repository / FILE).exists():
        return Manifest(files=entries(repository, models()))
    found = _loaded(repository / FILE, "if the files are right, delete it and run again")
    if not found.changing:
        return found
    there = {path: repository / path for path in found.changing}
    return found.announced({path: entry(file) if file.is_file() else None for path, file in there.items()}).settled()


def is_unsettled(repository: Path) -> bool:
    """Return whether a change is under way, or was killed, and no other has settled the manifest since."""
    path = repository / FILE
    return path.exists() and bool(_loaded(path, "delete it and run again").changing)


def verify(repository: Path, say: Callable[[str], object] = lambda line: None) -> bool:
    """Return whether there was a manifest to verify by; RepositoryError names the first file not as published."""
    if not (repository / FILE).exists():
        return False
    manifest = _loaded(repository / FILE, "publish again, or serve unverified with --no-verify")
    named = {*manifest.files, *manifest.changing}
    folders = {"/".join(parts[:2]) for path in named if len(parts := PurePosixPath(path).parts) > 2}
    inside = {path for folder in folders for path in _files(repository, [repository / folder])}
    present = sorted(path for path in named | inside if (repository / path).is_file())
    total = sum((repository / path).stat().st_size for path in present)
    if total > LARGE:
        say(f"verifying {total / 1e9:.1f} GB of {repository}; --no-verify leaves it out")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        got = dict(zip(present, pool.map(lambda path: entry(repository / path), present), strict=True))
    for path in sorted(named | got.keys()):
        allowed = manifest.allowed(path)
        if got.get(path) not in allowed:
            how = "is not what was published" if path in got else "is missing"
            raise RepositoryError(
                f"repository {repository}: {path} {'was never published' if allowed == [None] else how} (by {FILE}); "
                "put it right, publish the segmenter again, or serve unverified with --no-verify"
            )
    return True


def require(repository: Path, manifest: Manifest, folder: str) -> None:
    """Raise RepositoryError unless the folder, a path in the repository, has just what the manifest says."""
    wanted = {path: entry for path, entry in manifest.files.items() if path.startswith(f"{folder}/")}
    got = entries(repository, [repository / folder])
    different = sorted(path for path in wanted.keys() | got.keys() if wanted.get(path) != got.get(path))
    if different:
        raise RepositoryError(
            f"repository {repository}: {different[0]} is not what was published (its SHA-256 is not the manifest's); "
            "put the file back, or publish again"
        )


def entries(root: Path, folders: Iterable[Path]) -> dict[str, Entry]:
    """Return path from `root` -> entry, for every file in `folders` (or for those that are files)."""
    return {path: entry(root / path) for path in _files(root, folders)}


def entry(path: Path) -> Entry:
    """Return what the file is. Reads all of it: a second for each gigabyte or two."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return Entry(sha256=digest.hexdigest(), bytes=path.stat().st_size)


def _files(root: Path, folders: Iterable[Path]) -> list[str]:
    """Return the paths, from `root`, of all files that count."""
    found = [path for folder in folders for path in ([folder] if folder.is_file() else sorted(folder.rglob("*")))]
    return [path.relative_to(root).as_posix() for path in found if path.is_file() and CACHE not in path.parts]


def _loaded(path: Path, next_step: str) -> Manifest:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if facts["format"] != FORMAT:
            raise ValueError(f"format {facts['format']}, expected {FORMAT}")
        return Manifest(
            files={path: Entry(**fact) for path, fact in facts["files"].items()},
            changing={path: Entry(**fact) if fact else None for path, fact in facts["changing"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RepositoryError(f"manifest {path}: cannot be read ({error}); {next_step}") from error
