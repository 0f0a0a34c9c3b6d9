"""A folder by its address: on this machine, on a disk that machines share, or in an object store that fsspec knows."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slime_repository.object_store import opened, write_whole

# What tells the content of a file from what it had before, by the names that the stores have for it.
_CHANGED = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified")


@dataclass(frozen=True)
class File:
    """A file's size in bytes, and its time or the store's tag, which another content does not have."""

    size: int
    changed: str


class Folder:
    """The folder at `where`, a path or an address such as s3://BUCKET/PREFIX.

    Raises RepositoryError where there can be none. Files that cannot be read or written raise OSError.
    """

    def __init__(self, where: str) -> None:
        self.url = where.rstrip("/") if "://" in where else f"file://{Path(where).resolve()}"
        self.fs, self.root = opened(self.url, anew=False)

    def path(self, name: str) -> str:
        """Return the path of a file on the folder's filesystem."""
        return f"{self.root}/{name}" if name else self.root

    def files(self) -> dict[str, File]:
        """Return all files in the folder and those inside it, by their path in it; "" for what is itself a file."""
        found: dict[str, dict[str, Any]] = self.fs.find(self.root, detail=True)
        return {
            path.removeprefix(self.root).lstrip("/"): File(
                int(told["size"]), next((str(told[key]) for key in _CHANGED if told.get(key)), "")
            )
            for path, told in sorted(found.items())
        }

    def read(self, name: str) -> bytes | None:
        """Return a file's content, or None where there is none."""
        try:
            return bytes(self.fs.cat_file(self.path(name)))
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all."""
        write_whole(self.fs, self.path(name), content)

    def read_json(self, name: str) -> dict[str, Any]:
        """Return a file's JSON object; nothing where there is none, or one that a kill has cut short."""
        try:
            found = json.loads(self.read(name) or b"{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def write_json(self, name: str, facts: dict[str, Any]) -> None:
        """Write a JSON object, whole or not at all."""
        self.write(name, json.dumps(facts, indent=2, ensure_ascii=False).encode())

    def fetch(self, target: Path) -> None:
        """Copy all files into the folder `target`, which is made; what is itself a file, to the file `target`.

        Raises FileNotFoundError where there is none.
        """
        if not (names := list(self.files())):
            raise FileNotFoundError(f"{self.url}: is not there, or empty")
        for name in names:
            place = target / name if name else target
            place.parent.mkdir(parents=True, exist_ok=True)
            self.fs.get_file(self.path(name), str(place))

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.path(name))
