"""Whether a repository holds what was published into it: manifest.json, SHA-256 by file.

    {"format": 1, "files": {PATH: {"sha256": HEX, "bytes": N}, …}, "changing": {PATH: {…} or null, …}}

PATH is relative to the repository, with forward slashes. A path in "changing" may be as said there (null: not there) or
as in "files": a publication was under way when the repository was copied, or was killed. A version's folder that the
manifest has a file of is complete; models that it has nothing of are not looked at. This finds damage and half copies;
it is no signature. docs/repository.md has all of it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from slime_serve.errors import UsageError

FILE = "manifest.json"
FORMAT = 1
CACHE = "__pycache__"
# Hashing more than this takes seconds, which want a word of why.
LARGE = 2 * 1024**3
Fact = Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class _Manifest:
    files: Mapping[str, Fact]
    changing: Mapping[str, Fact]

    def allowed(self, path: str) -> list[Fact]:
        """What the file may be; None for not there."""
        return [told[path] for told in (self.files, self.changing) if path in told] + [None] * (path not in self.files)


def verify(repository: Path, say: Callable[[str], object] = lambda line: None) -> bool:
    """Whether there was a manifest to verify by. Raises UsageError, naming the first file that is not as published."""
    if not (repository / FILE).exists():
        return False
    manifest = _read(repository / FILE)
    present = _present(repository, manifest)
    total = sum((repository / path).stat().st_size for path in present)
    if total > LARGE:
        say(f"verifying {total / 1e9:.1f} GB of {repository}; --no-verify leaves it out")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        facts = dict(zip(present, pool.map(lambda path: _fact(repository / path), present), strict=True))
    for path in sorted({*manifest.files, *manifest.changing, *present}):
        _require(repository, path, facts.get(path), manifest.allowed(path))
    return True


def _read(path: Path) -> _Manifest:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if facts["format"] != FORMAT:
            raise ValueError(f"format {facts['format']}, expected {FORMAT}")
        return _Manifest(files=dict(facts["files"]), changing=dict(facts["changing"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"manifest {path}: cannot be read ({error}); publish again, or serve unverified with --no-verify"
        ) from error


def _present(repository: Path, manifest: _Manifest) -> list[str]:
    """The files there are of what the manifest covers: those it names, and all in the folders of their versions."""
    named = {*manifest.files, *manifest.changing}
    folders = {"/".join(parts[:2]) for path in named if len(parts := PurePosixPath(path).parts) > 2}
    inside = {
        path.relative_to(repository).as_posix()
        for folder in folders
        for path in (repository / folder).rglob("*")
        if CACHE not in path.parts
    }
    return sorted(path for path in named | inside if (repository / path).is_file())


def _fact(path: Path) -> Fact:
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}


def _require(repository: Path, path: str, got: Fact, allowed: list[Fact]) -> None:
    if got in allowed:
        return
    how = "is missing" if got is None else "was never published" if allowed == [None] else "is not what was published"
    raise UsageError(
        f"repository {repository}: {path} {how} (by {FILE}); put it right, publish the segmenter again, "
        "or serve unverified with --no-verify"
    )
