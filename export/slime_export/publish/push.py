"""Sends a repository to an object store: what the store has not, in parts, and the generation that names it last.

The repository is looked at under its lock for a moment only: hard links keep what it held, while others publish on. A
push that was killed leaves parts, which the next one finds there.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from slime_export.publish.lock import WAIT_S, Say, locked, staging
from slime_repository import layout, synced
from slime_repository.errors import ObjectStoreError, RepositoryError
from slime_repository.object_store import Generation, ObjectStore, Progress, Stored, in_order
from slime_repository.synced import Contents, Synced

# Of the staging folder: what the repository held when the push began.
_LINKS = "pushed"


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """The store's generation that holds the repository, and the bytes that travelled; `new`: it was made now."""

    generation: int
    sent: int
    new: bool


def push(
    repository: Path, store: ObjectStore, *, replace: bool = False, wait_s: float = WAIT_S, say: Say = print
) -> Pushed:
    """Make the store's next generation of what `repository` holds.

    With `replace`, whatever the store holds now, and every part is looked for in it. Raises RepositoryError for a
    repository that is damaged or has no segmenters, ObjectStoreError where it lacks what the store has, or the store
    refuses, BusyError or OSError. Then readers of the store see what they saw before.
    """
    layout.require_repository(repository)
    with staging(repository, wait_s, say) as staged:
        with locked(repository, wait_s, say):
            known = synced.read(repository, store.url)
            if known.pulling and not replace:
                raise RepositoryError(
                    f"repository {repository}: a pull into it was interrupted; run that again, or push with --replace"
                )
            found = _linked(repository, staged / _LINKS)
        head = store.head()
        if head and not replace and head.digest not in (known.content, known.pushing, found.digest):
            raise ObjectStoreError(
                f"store {store.url}: generation {head.number} of {head.pushed} is not from repository {repository}; "
                "pull it into another folder, export into that, and push that; or give up what it holds with --replace"
            )
        there = {} if replace or head is None or head.part_bytes != store.part_bytes else head.files
        files, sent = _sent(store, repository, staged / _LINKS, found, there, say)
        if head and head.digest == found.digest:
            synced.write(repository, staged, store.url, Synced(content=found.digest))
            return Pushed(generation=head.number, sent=sent, new=False)
        generation = Generation(
            number=head.number + 1 if head else 1, files=files, folders=found.folders, part_bytes=store.part_bytes
        )
        # Told beforehand, because a kill may come after the store has it.
        before = head.digest if head else ""
        synced.write(repository, staged, store.url, Synced(content=before, pushing=found.digest))
        store.put(generation)
        synced.write(repository, staged, store.url, Synced(content=found.digest))
    return Pushed(generation=generation.number, sent=sent, new=True)


def _linked(repository: Path, links: Path) -> Contents:
    """Return what the repository holds, with its files linked into the folder `links`."""
    if not layout.ensembles(repository):
        raise RepositoryError(f"repository {repository}: no segmenters in it; publish one with export/build.py first")
    found = synced.contents(repository)
    for path in found.files:
        target = links / path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(repository / path, target)
        except FileNotFoundError as error:
            raise _not_as_published(repository, path) from error
    return found


def _sent(
    store: ObjectStore, repository: Path, links: Path, found: Contents, there: Mapping[str, Stored], say: Say
) -> tuple[dict[str, Stored], int]:
    """Send the parts that the store has not; return the files with their parts, and the bytes that travelled.

    `there`: files that are known to be in the store, which are not read. Raises RepositoryError for a file that is not
    as it was published, ObjectStoreError or OSError.
    """
    stored = {each.sha256: each for each in there.values()}
    paths = {each.sha256: path for path, each in found.files.items() if each.sha256 not in stored}
    total = sum(found.files[path].bytes for path in paths.values())
    if paths:
        say(f"sending {total / 1e6:.1f} MB in {len(paths)} new files to {store.url}")
    parts: dict[str, list[str]] = {path: [] for path in paths.values()}

    def pieces() -> Iterator[tuple[str, bytes]]:
        for path in paths.values():
            whole = hashlib.sha256()
            for piece in _read(links / path, store.part_bytes):
                whole.update(piece)
                parts[path].append(hashlib.sha256(piece).hexdigest())
                yield parts[path][-1], piece
            if whole.hexdigest() != found.files[path].sha256:
                raise _not_as_published(repository, path)

    def send(piece: tuple[str, bytes]) -> tuple[int, int]:
        sha256, content = piece
        if store.has(sha256, len(content)):
            return len(content), 0
        store.put_part(content, sha256)
        return len(content), len(content)

    sent, progress = 0, Progress(total, say)
    for size, travelled in in_order(send, pieces()):
        sent += travelled
        progress.add(size)
    for path, each in parts.items():
        entry = found.files[path]
        stored[entry.sha256] = Stored(sha256=entry.sha256, bytes=entry.bytes, parts=tuple(each))
    return {path: stored[entry.sha256] for path, entry in found.files.items()}, sent


def _read(file: Path, part_bytes: int) -> Iterator[bytes]:
    """Yield the parts of the file, one that is empty for an empty file."""
    with file.open("rb") as opened:
        yield opened.read(part_bytes)
        while piece := opened.read(part_bytes):
            yield piece


def _not_as_published(repository: Path, path: str) -> RepositoryError:
    return RepositoryError(
        f"repository {repository}: {path} is not what was published (its SHA-256 is not the manifest's), so nothing "
        "was pushed; put the file back, or publish again"
    )
