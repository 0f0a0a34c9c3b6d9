"""Brings a repository to what an object store has: once, or whenever that changes.

parts > .REPO.pulled/SHA256, verified, while the repository is as it was; a pull that was killed goes on from there
> the repository, in one transaction (mirror.py), which undoes every step where one fails
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from dataclasses import replace as changed
from pathlib import Path

from slime_export.errors import ExportError
from slime_export.publish.lock import WAIT_S, Say, locked, staging
from slime_export.publish.mirror import Mirror, Plan
from slime_export.publish.server_control import Server
from slime_export.publish.transaction import opened
from slime_repository import layout, manifest, served_code, synced
from slime_repository.errors import ObjectStoreError, RepositoryError
from slime_repository.object_store import ObjectStore, Progress, Stored, in_order
from slime_repository.synced import Contents, Synced


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """The store's generation that the repository is now; `changed`: it was not before; `received`: bytes that came."""

    generation: int
    changed: bool
    received: int = 0


def pull(
    store: ObjectStore,
    repository: Path,
    server: Callable[[], Server | None] = lambda: None,
    *,
    replace: bool = False,
    wait_s: float = WAIT_S,
    say: Say = print,
) -> Pulled:
    """Make `repository`, which is made if missing, what the store has.

    `server` is called where there is something to change, for the running server that is to follow: it tries what is
    new before any client can see it. With `replace`, what was changed here and never pushed is given up. Raises
    RepositoryError, ObjectStoreError, ServerError, BusyError or OSError with the repository, and what the server
    serves, as they were.
    """
    head = store.head()
    if head is None:
        raise ObjectStoreError(f"store {store.url}: holds no repository yet; slime repository push REPO {store.url}")
    found, known = synced.contents(repository), synced.read(repository, store.url)
    done, root = Synced(content=head.digest), repository.resolve()
    downloads = root.with_name(f".{root.name}.pulled")
    if found.digest == head.digest:
        if known != done:
            with staging(repository, wait_s, say) as staged:
                synced.write(repository, staged, store.url, done)
        shutil.rmtree(downloads, ignore_errors=True)
        return Pulled(generation=head.number, changed=False)
    _require_replaceable(repository, store, found, known, replace)
    with locked(downloads, wait_s, say):
        received = _download(store, head.part_bytes, Plan(repository, found, head), downloads, say)
        following = server()
        with staging(repository, wait_s, say) as staged:
            with opened(repository, staged, following, wait_s, say) as transaction:
                if synced.contents(repository) != found:
                    raise ExportError(f"repository {repository}: was changed meanwhile; nothing was pulled, run again")
                transaction.changes.on_undo(lambda: synced.write(repository, staged, store.url, known))
                synced.write(repository, staged, store.url, changed(known, pulling=True))
                Mirror(transaction, Plan(repository, found, head), downloads).run()
            synced.write(repository, staged, store.url, done)
    shutil.rmtree(downloads, ignore_errors=True)
    return Pulled(generation=head.number, changed=True, received=received)


def _require_replaceable(repository: Path, store: ObjectStore, found: Contents, known: Synced, replace: bool) -> None:
    """Raise RepositoryError where the repository has what is not in the store, or is this project's own code."""
    if own := [model for model in layout.models(repository) if served_code.is_own(repository, model)]:
        raise RepositoryError(
            f"repository {repository}: {own[0]} in it is this project's own; pull into another folder"
        )
    killed = known.pulling and manifest.is_unsettled(repository)
    if found.files and not (replace or killed or found.digest == known.content):
        raise RepositoryError(
            f"repository {repository}: has changes that were never pushed to {store.url}; push them, pull into another "
            "folder, or give them up with --replace"
        )


def _download(store: ObjectStore, part_bytes: int, plan: Plan, downloads: Path, say: Say) -> int:
    """Have all new content in `downloads`, by its SHA-256; return the bytes that came over the network.

    What the repository has already, under whatever name, is linked. Raises ObjectStoreError or OSError.
    """
    missing: list[Stored] = []
    for sha256, each in {each.sha256: each for each in plan.new.values()}.items():
        here = plan.local.get(sha256)
        if (downloads / sha256).exists():
            continue
        if here and here.is_file() and manifest.entry(here).sha256 == sha256:
            os.link(here, downloads / sha256)
        else:
            missing.append(each)

    def pieces() -> Iterator[tuple[Stored, int]]:
        for each in missing:
            with (downloads / f"{each.sha256}.part").open("ab") as file:
                # A kill may have cut the last one short.
                there = min(file.tell() // part_bytes, len(each.parts) - 1)
                file.truncate(there * part_bytes)
            for index in range(there, len(each.parts)):
                yield each, index

    def receive(piece: tuple[Stored, int]) -> tuple[Stored, int, bytes]:
        each, index = piece
        return each, index, store.part(each.parts[index], min(part_bytes, each.bytes - index * part_bytes))

    total, received = sum(each.bytes for each in missing), 0
    if missing:
        say(f"receiving {total / 1e6:.1f} MB in {len(missing)} new files from {store.url}")
    progress = Progress(total, say)
    for each, index, content in in_order(receive, pieces()):
        part = downloads / f"{each.sha256}.part"
        with part.open("ab") as file:
            file.write(content)
        received += len(content)
        progress.add(len(content))
        if index == len(each.parts) - 1:
            if manifest.entry(part).sha256 != each.sha256:
                part.unlink()
                raise ObjectStoreError(
                    f"store {store.url}: a file of SHA-256 {each.sha256} is not what was pushed; push --replace from a "
                    "repository that has it"
                )
            part.rename(downloads / each.sha256)
    return received
