"""The files of shared segmenters in a repository: put there, listed, rolled back and taken away.

    REPO/segmenters/store/NAME.safetensors        what serves; its rename is the switch
    REPO/segmenters/history/NAME/3.safetensors    what version 3 was, for a rollback

Every request is answered with one whole file, the old or the new.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from slime_export.errors import ExportError
from slime_export.publish.changes import Changes
from slime_export.publish.lock import WAIT_S, Say, locked, staging
from slime_export.publish.release import KEEP, retire
from slime_export.publish.server_control import Server
from slime_export.publish.transaction import Transaction
from slime_optimize.segmenter import now_in_utc
from slime_repository import layout
from slime_repository.contract import SEGMENTERS
from slime_repository.record import Check
from slime_repository.served_code import published
from slime_repository.shared_contract import STORE, is_group
from slime_store import Entry, Store, content
from slime_store.store import ENDING, read

HISTORY = "history"
VERSION, PUBLISHED, CONTENT_OF = "version", "published", "content_of"


def names(repository: Path) -> list[str]:
    """Of the shared segmenters, in order."""
    return store_of(repository).names()


def require_baked(repository: Path, name: str) -> None:
    """Raises ExportError where the repository does not have it with its embedding baked in, or is not there."""
    layout.require_repository(repository)
    if name not in layout.segmenters(repository):
        raise _missing(repository, name)


def require_free(repository: Path, name: str, *, shared: bool) -> None:
    """Raises ExportError where a segmenter of the other form has this name."""
    others = layout.segmenters(repository) if shared else names(repository)
    if name in others:
        how = "with its embedding baked in" if shared else "in the shared form"
        raise ExportError(
            f"segmenter {name}: is in repository {repository} {how}; give another --name, or remove that one first"
        )


def put(transaction: Transaction, name: str, entry: Entry, keep: int, check: Check | None = None) -> int:
    """Makes `entry` the segmenter's file, under the next version's number, which is returned.

    With `check`, the running server answers it first, under a name that no client can ask for by accident.
    """
    folder, store = _store_folder(transaction.repository), store_of(transaction.repository)
    folder.mkdir(exist_ok=True)
    version = max([0, *numbers(transaction.repository, name)]) + 1
    facts = {"name": name, VERSION: version, PUBLISHED: now_in_utc()}
    told = replace(entry, description={**entry.description, **facts})
    if transaction.server and check:
        tried = store.path(f".{name}")
        transaction.changes.write(tried, content(told))
        transaction.server.try_shared(str(entry.description["model"]), f".{name}", check)
        transaction.changes.take(tried)
    before = store.path(name)
    if before.exists():
        _remember(transaction, name, before, keep)
    transaction.changes.write(before, content(told))
    return version


def numbers(repository: Path, name: str) -> list[int]:
    """The versions of a shared segmenter that are there, lowest first; the last one serves."""
    live = store_of(repository).path(name)
    found = sorted(int(each.stem) for each in _history(repository, name).glob(f"*{ENDING}"))
    return [*found, int(read(live).description[VERSION])] if live.exists() else found


def roll_back(transaction: Transaction, name: str, to: int | None) -> tuple[int, int]:
    """Publishes an earlier version's content anew: that of number `to`, or of the one before; (its number, the new)."""
    require(transaction.repository, name)
    earlier = numbers(transaction.repository, name)[:-1]
    wanted = earlier[-1] if to is None and earlier else to
    if wanted is None or wanted not in earlier:
        kept = ", ".join(map(str, earlier)) or "none"
        raise ExportError(f"segmenter {name}: has no earlier version {to or ''}".rstrip() + f"; kept: {kept}")
    old = read(_history(transaction.repository, name) / f"{wanted}{ENDING}")
    back = replace(old, description={**old.description, CONTENT_OF: old.description.get(CONTENT_OF) or wanted})
    # As many are kept as there are now: the option is the publication's.
    return wanted, put(transaction, name, back, max(KEEP, len(earlier) + 1))


def take(transaction: Transaction, name: str) -> None:
    """Takes the segmenter away, and its group's models where it was the last of them."""
    repository = transaction.repository
    require(repository, name)
    group = str(read(store_of(repository).path(name)).description["model"])
    transaction.changes.take(store_of(repository).path(name))
    if _history(repository, name).is_dir():
        transaction.changes.take(_history(repository, name))
    if group not in {str(each["model"]) for each in descriptions(repository)}:
        models = set(layout.pinned(repository / group))
        transaction.remove(group)
        retire(transaction, models, layout.used(repository))


def descriptions(repository: Path) -> Iterator[dict[str, object]]:
    """What each shared segmenter says of itself, by name."""
    store = store_of(repository)
    for name in store.names():
        yield dict(read(store.path(name)).description)


def require(repository: Path, name: str) -> None:
    """Raises ExportError where no shared segmenter is called so."""
    if name not in names(repository):
        raise _missing(repository, name)


def _missing(repository: Path, name: str) -> ExportError:
    """Names those of both forms."""
    there = ", ".join(sorted({*layout.segmenters(repository), *names(repository)})) or "none"
    return ExportError(f"segmenter {name}: not in repository {repository}; segmenters there: {there}")


def store_of(repository: Path) -> Store:
    return Store(_store_folder(repository))


def _store_folder(repository: Path) -> Path:
    return repository / SEGMENTERS / STORE


def _history(repository: Path, name: str) -> Path:
    return repository / SEGMENTERS / HISTORY / name


def _remember(transaction: Transaction, name: str, live: Path, keep: int) -> None:
    folder = _history(transaction.repository, name)
    folder.mkdir(parents=True, exist_ok=True)
    transaction.changes.write(folder / f"{read(live).description[VERSION]}{ENDING}", live.read_bytes())
    there = sorted(folder.glob(f"*{ENDING}"), key=lambda each: int(each.stem))
    for old in there[: max(0, len(there) - (keep - 1))]:
        transaction.changes.take(old)


def rollback_shared(
    repository: Path, name: str, to: int | None, server: Server | None, *, wait_s: float = WAIT_S, say: Say = print
) -> tuple[int, int]:
    """As `rollback.rollback`; what was checked when it was published is not checked again."""
    with _changing(repository, server, wait_s, say) as transaction:
        return roll_back(transaction, name, to)


def remove_shared(
    repository: Path, name: str, server: Server | None, *, wait_s: float = WAIT_S, say: Say = print
) -> list[str]:
    """As `removal.remove`."""
    with _changing(repository, server, wait_s, say) as transaction:
        before = layout.models(repository)
        take(transaction, name)
        return [name, *(model for model in before if not (repository / model).exists())]


@contextmanager
def _changing(repository: Path, server: Server | None, wait_s: float, say: Say) -> Iterator[Transaction]:
    with (
        staging(repository, wait_s, say) as staged,
        locked(repository, wait_s, say),
        Changes(repository, staged, lambda: published(repository)) as changes,
    ):
        yield Transaction(repository, staged, changes, server)


def groups(repository: Path) -> list[str]:
    """Names of the groups' ensembles, in order."""
    return [model for model in layout.models(repository) if is_group(model)]
