"""A model repository in an object store (S3, Google, Azure, or any other that fsspec knows): what lies where.

    URL/generations/00000007.json     what the repository held at its 7th push; the highest is the head
    URL/blobs/sha256/9f/9f2c…         the content of files by its SHA-256, cut into parts of at most PART_BYTES

    {"format": 1, "generation": 7, "pushed": UTC, "id": "…", "part_bytes": 16777216, "folders": ["shared_1a2b/3"],
     "files": {"car_unet/3/model.onnx": {"sha256": "9f2c…", "bytes": 3441920, "parts": ["41d0…", …]}}}

A generation is written after all the blobs it names and never changes, so no reader sees half of one. It is written
only where there is none of that number: of two pushers one wins. "parts" is left out for a file of one part, and
"folders" are the versions that have no files, which no store can hold. Nothing is ever deleted or written anew.

Who calls decides what is pushed and pulled. Credentials are fsspec's business (its configuration, or the environment).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from slime_repository.errors import ObjectStoreError, RepositoryError
from slime_repository.manifest import Entry
from slime_repository.record import now_in_utc

FORMAT = 1
# A part is held in memory, and sent again whole when the connection breaks.
PART_BYTES = 16 * 2**20
AT_ONCE = 4
# Beside the attempts of the store's own package, which are over within seconds.
_RETRIES_S = (1.0, 4.0)
_TOLD_EVERY_S = 10.0
_EXTRAS = {"s3fs": "s3", "gcsfs": "gcs", "adlfs": "azure", "fsspec": "store"}
_PERMANENT = (FileNotFoundError, FileExistsError, PermissionError, NotImplementedError)
_HEX = re.compile("[0-9a-f]{64}")
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class Stored(Entry):
    """A file in the store: SHA-256 and size in bytes of all of it, and the SHA-256 of each part, in order."""

    parts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What the repository holds: `files` by path, and the versions without files in `folders`."""

    number: int
    files: Mapping[str, Stored]
    folders: tuple[str, ...] = ()
    part_bytes: int = PART_BYTES
    pushed: str = field(default_factory=now_in_utc)
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def digest(self) -> str:
        """Return what tells this content from any other."""
        return digest(self.files, self.folders)

    def content(self) -> bytes:
        """Return the object."""
        facts = {
            "format": FORMAT,
            "generation": self.number,
            "pushed": self.pushed,
            "id": self.id,
            "part_bytes": self.part_bytes,
            "folders": list(self.folders),
            "files": {
                path: {"sha256": each.sha256, "bytes": each.bytes} | ({"parts": each.parts} if each.parts[1:] else {})
                for path, each in sorted(self.files.items())
            },
        }
        return json.dumps(facts, separators=(",", ":")).encode()

    @classmethod
    def read(cls, content: bytes) -> Generation:
        """Return what `content` wrote. Raises ValueError, KeyError or TypeError for anything else."""
        facts = json.loads(content)
        if facts["format"] != FORMAT:
            raise ValueError(f"format {facts['format']}, expected {FORMAT}; install a newer slime-serve")
        files = {
            _checked(path): Stored(
                sha256=told["sha256"], bytes=int(told["bytes"]), parts=tuple(told.get("parts", [told["sha256"]]))
            )
            for path, told in facts["files"].items()
        }
        part_bytes = int(facts["part_bytes"])
        for path, each in files.items():
            wanted = max(1, -(-each.bytes // part_bytes))
            if len(each.parts) != wanted or not all(_HEX.fullmatch(sha256) for sha256 in (each.sha256, *each.parts)):
                raise ValueError(f"{path} has {len(each.parts)} parts, or one that is no SHA-256, expected {wanted}")
        return cls(
            number=int(facts["generation"]),
            files=files,
            folders=tuple(map(_checked, facts["folders"])),
            pushed=str(facts["pushed"]),
            id=str(facts["id"]),
            part_bytes=part_bytes,
        )


def digest(files: Mapping[str, Entry], folders: Iterable[str]) -> str:
    """Return what tells a repository of these files and empty versions from any other."""
    told = [sorted((path, each.sha256) for path, each in files.items()), sorted(folders)]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def opened(url: str, *, anew: bool = True) -> tuple[Any, str]:
    """Return fsspec's filesystem for the address `url`, and the path on it; not `anew`: the process's one of its kind.

    Raises RepositoryError where there can be none, in one line without what may be secret.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise RepositoryError(f"store {url}: is no address of one, expected for example s3://BUCKET/PREFIX")
    if "@" in rest.partition("/")[0] and scheme in ("s3", "s3a", "http", "https", "ftp", "sftp"):
        raise RepositoryError(
            f"store {scheme}://…: the address holds a name or a password, which others would see; leave it to the "
            "environment (for S3, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
        )
    try:
        import fsspec

        # Listings are asked for anew each time, since others write as well.
        filesystem, root = fsspec.url_to_fs(url, use_listings_cache=False, skip_instance_cache=anew)
    except ImportError as error:
        missing = next((name for name in _EXTRAS if name in str(error)), None)
        line = f"pip install 'slime-serve[{_EXTRAS[missing]}]'" if missing else f"install it ({_line(error)})"
        raise RepositoryError(f"store {url}: the package {missing or 'for it'} is missing; {line}") from error
    except ValueError as error:
        raise RepositoryError(f"store {url}: cannot be used ({_line(error)})") from error
    return filesystem, root


def is_local(filesystem: Any) -> bool:
    """Return whether an fsspec filesystem is this machine's own, or mounted on it."""
    return "file" in ([filesystem.protocol] if isinstance(filesystem.protocol, str) else filesystem.protocol)


def write_whole(filesystem: Any, path: str, content: bytes, *, new: bool = False) -> None:
    """Write an object or a file whole or not at all; `new`: raise FileExistsError where there is one."""
    if not is_local(filesystem):
        filesystem.pipe_file(path, content, mode="create" if new else "overwrite")
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        aside.write_bytes(content)
        (os.link if new else os.replace)(aside, target)
    finally:
        aside.unlink(missing_ok=True)


class ObjectStore:
    """The store at `url`; `part_bytes`: of what is pushed from now on.

    Raises RepositoryError where there can be none, in one line without what may be secret.
    """

    def __init__(self, url: str, *, part_bytes: int = PART_BYTES) -> None:
        self.url, self.part_bytes = url.rstrip("/"), part_bytes
        self._head: tuple[tuple[int, str], Generation] | None = None
        self._fs, self._root = opened(self.url)

    def head(self) -> Generation | None:
        """Return the newest generation, or None where nothing was pushed. Raises ObjectStoreError."""
        folder = f"{self._root}/generations"
        try:
            listed = self._asked("list", "generations", lambda: self._fs.ls(folder, detail=True))
        except FileNotFoundError:
            return None
        # With time and size: who waits for the next one does not read the same one again and again.
        found = [(int(stem), str(each)) for each in listed if (stem := PurePosixPath(each["name"]).stem).isdecimal()]
        if not found:
            return None
        if self._head is None or self._head[0] != max(found):
            self._head = max(found), self._generation(max(found)[0])
        return self._head[1]

    def put(self, generation: Generation) -> None:
        """Write the generation, unless there is one of its number: then raise ObjectStoreError that says so."""
        name, content = _name(generation.number), generation.content()
        failed: Exception | None = None
        # Looked for before and read after it: a store that knows no condition lets the last one win.
        if self._content(name) is None:
            try:
                self._asked("write", name, lambda: write_whole(self._fs, f"{self._root}/{name}", content, new=True))
            except (FileExistsError, ObjectStoreError) as error:
                failed = error
        # Whatever the store answered: an attempt whose answer was lost may have been the one that wrote it.
        there = self._content(name)
        if there is None:
            raise (
                failed
                if isinstance(failed, ObjectStoreError)
                else ObjectStoreError(f"store {self.url}: {name} is not kept")
            )
        if there != content:
            raise ObjectStoreError(
                f"store {self.url}: somebody else pushed generation {generation.number} in the meantime, and that one "
                "holds; pull it into another folder, export into that, and push that"
            )

    def has(self, sha256: str, size: int) -> bool:
        """Return whether this part is there whole. Raises ObjectStoreError."""
        name = _blob(sha256)
        try:
            return bool(self._asked("look for", name, lambda: self._fs.info(f"{self._root}/{name}"))["size"] == size)
        except FileNotFoundError:
            return False

    def put_part(self, content: bytes, sha256: str) -> None:
        """Write a part. Raises ObjectStoreError."""
        name = _blob(sha256)
        try:
            self._asked("write", name, lambda: write_whole(self._fs, f"{self._root}/{name}", content))
        except FileNotFoundError as error:
            raise ObjectStoreError(
                f"store {self.url}: there is no such bucket or container; make it, and push again"
            ) from error

    def part(self, sha256: str, size: int) -> bytes:
        """Return a part of this size. Raises ObjectStoreError where it is missing, or is not what was pushed."""
        name = _blob(sha256)
        try:
            # A range even for all of it: without one S3's client asks for the size first.
            path = f"{self._root}/{name}"
            content = (
                bytes(self._asked("read", name, lambda: self._fs.cat_file(path, start=0, end=size))) if size else b""
            )
        except FileNotFoundError:
            content = None
        if content is None or hashlib.sha256(content).hexdigest() != sha256:
            how = "is missing" if content is None else "is not what was pushed (its SHA-256 is another)"
            raise ObjectStoreError(
                f"store {self.url}: {name} {how}; delete it, and push --replace from a repository that has the file"
            )
        return content

    def _generation(self, number: int) -> Generation:
        name = _name(number)
        try:
            return Generation.read(self._content(name) or b"")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ObjectStoreError(f"store {self.url}: {name} cannot be read ({_line(error)})") from error

    def _content(self, name: str) -> bytes | None:
        try:
            return bytes(self._asked("read", name, lambda: self._fs.cat_file(f"{self._root}/{name}")))
        except FileNotFoundError:
            return None

    def _asked(self, what: str, name: str, call: Callable[[], Any]) -> Any:
        """Return what the call returns, after some attempts; else raise FileNotFoundError, FileExistsError or
        ObjectStoreError."""
        for wait_s in (*_RETRIES_S, None):
            try:
                return call()
            except (FileNotFoundError, FileExistsError):
                raise
            except Exception as error:  # each store's package has its own kinds, and not all of them are OSErrors
                if wait_s is None or isinstance(error, _PERMANENT):
                    raise self._failed(what, name, error) from error
                time.sleep(wait_s)
        raise AssertionError

    def _failed(self, what: str, name: str, error: Exception) -> ObjectStoreError:
        why = (
            "check what the credentials may do"
            if isinstance(error, PermissionError)
            else "check the connection and the credentials, and run again to go on"
        )
        return ObjectStoreError(f"store {self.url}: cannot {what} {name} ({_line(error)}); {why}")


class Progress:
    """Says how much of `total` bytes is done, every few seconds."""

    def __init__(self, total: int, say: Callable[[str], object]) -> None:
        self._total, self._say, self._done, self._told = total, say, 0, time.monotonic()

    def add(self, count: int) -> None:
        """Count these bytes."""
        self._done += count
        if time.monotonic() - self._told > _TOLD_EVERY_S:
            self._told = time.monotonic()
            self._say(f"{self._done / 1e6:.0f} of {self._total / 1e6:.0f} MB")


def in_order(call: Callable[[_Item], _Result], items: Iterable[_Item], at_once: int = AT_ONCE) -> Iterator[_Result]:
    """Yield what `call` returns for each item, in their order; `at_once` calls run in threads, or wait to be taken.

    So as many parts as that are in memory, however many there are.
    """
    waiting: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(at_once) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(call, item))
                if len(waiting) == at_once:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for each in waiting:
                each.cancel()


def _name(generation: int) -> str:
    return f"generations/{generation:08}.json"


def _blob(sha256: str) -> str:
    return f"blobs/sha256/{sha256[:2]}/{sha256}"


def _checked(path: str) -> str:
    """Return a path that lies in a model's folder. Raises ValueError for others, which would be written elsewhere."""
    parts = path.split("/")
    if (
        len(parts) < 2
        or "\\" in path
        or "\0" in path
        or any(part in ("", ".", "..") for part in parts)
        or path[0] == "."
    ):
        raise ValueError(f"the path {path!r} is no file of a model")
    return path


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
