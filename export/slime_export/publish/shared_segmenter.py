"""A segmenter of the shared form, which is a file: how a version of it goes live, and how it leaves.

    store/.NAME (asked) > history/NAME/N, store/NAME (the rename is the switch), checks/NAME/N+1

Every request is answered with one whole file, the old or the new. No model is loaded for it; its group's ensemble,
which it has in common with others, changes only with the code it is pinned to.
"""

from __future__ import annotations

from dataclasses import replace

from slime_export.publish.baked_segmenter import KEEP
from slime_export.publish.transaction import Transaction
from slime_repository import config as triton_config
from slime_repository import layout, manifest, shared_store
from slime_repository.contract import IMAGE_SECONDS
from slime_repository.record import Check, now_in_utc
from slime_repository.shared_store import CONTENT_OF, PUBLISHED, VERSION
from slime_store import Entry, content


class SharedSegmenter:
    """The segmenter `name` in a transaction; `keep`: how many of its versions stay, None for as many as there are."""

    def __init__(self, transaction: Transaction, name: str, keep: int | None = None) -> None:
        self.transaction, self.name = transaction, name
        self.keep = max(KEEP, len(self.versions()) if keep is None else keep)

    def versions(self) -> list[int]:
        """Return the versions that are there, lowest first."""
        return shared_store.versions(self.transaction.repository, self.name)

    def live(self) -> int | None:
        """Return the version that serves."""
        return max(self.versions(), default=None)

    def earlier(self) -> list[int]:
        """Return the versions that could serve again."""
        return self.versions()[:-1]

    def put(self, entry: Entry, check: Check | None) -> int:
        """Make `entry` the segmenter's file, and return its version.

        With `check`, the running server answers it first, under a name that no client asks for by accident.
        """
        transaction, changes = self.transaction, self.transaction.changes
        store = shared_store.store_of(transaction.repository)
        store.folder.mkdir(exist_ok=True)
        version = (self.live() or 0) + 1
        told = replace(
            entry, description={**entry.description, "name": self.name, VERSION: version, PUBLISHED: now_in_utc()}
        )
        if transaction.server and check:
            seconds = try_file(transaction, self.name, content(told), str(entry.description["model"]), check)
            told = replace(told, description={**told.description, IMAGE_SECONDS: round(seconds, 3)})
        live = store.path(self.name)
        if live.exists():
            self._remember()
        if check:
            staged = transaction.staging / ".checks" / self.name
            check.write(staged / str(version))
            folder = shared_store.checks(transaction.repository, self.name)
            folder.parent.mkdir(exist_ok=True)
            if folder.exists():
                changes.place(staged / str(version), folder / str(version))
            else:
                changes.place(staged, folder)
        changes.write(live, content(told))
        return version

    def serve_again(self, version: int) -> int:
        """Publish an earlier version's content as a new version, and return its number."""
        repository = self.transaction.repository
        folder = shared_store.history(repository, self.name).relative_to(repository).as_posix()
        manifest.require(repository, self.transaction.changes.manifest, folder)
        old = shared_store.earlier(repository, self.name, version)
        back = replace(old, description={**old.description, CONTENT_OF: old.description.get(CONTENT_OF) or version})
        return self.put(back, shared_store.check_of(repository, self.name, version))

    def remove(self) -> None:
        """Take the segmenter away, and its group's models where it was the last of them."""
        transaction, repository = self.transaction, self.transaction.repository
        group = str(shared_store.entry(repository, self.name).description["model"])
        transaction.changes.take(shared_store.store_of(repository).path(self.name))
        for folder in (shared_store.history(repository, self.name), shared_store.checks(repository, self.name)):
            if folder.is_dir():
                transaction.changes.take(folder)
        if not shared_store.members(repository, group):
            models = set(layout.pinned(repository / group))
            transaction.remove(group)
            transaction.retire(models, layout.used(repository))

    def _remember(self) -> None:
        """Put the file that serves beside the earlier ones, of which the oldest leave."""
        transaction, repository = self.transaction, self.transaction.repository
        live, folder = shared_store.store_of(repository).path(self.name), shared_store.history(repository, self.name)
        folder.mkdir(parents=True, exist_ok=True)
        version = shared_store.entry(repository, self.name).description[VERSION]
        transaction.changes.write(shared_store.file_of(folder, version), live.read_bytes())
        for old in [each for each in self.versions() if each <= version][: 1 - self.keep]:
            transaction.changes.take(shared_store.file_of(folder, old))
            if (checked := shared_store.checks(repository, self.name) / str(old)).is_dir():
                transaction.changes.take(checked)


def try_file(transaction: Transaction, name: str, file: bytes, group: str, check: Check) -> float:
    """Have the running server answer `check` by this file under a name of its own; return the seconds that took.

    Raises ServerError where it answers wrongly.
    """
    assert transaction.server
    hidden = shared_store.store_of(transaction.repository).path(f".{name}")
    transaction.changes.write(hidden, file)
    seconds = transaction.server.try_shared(group, f".{name}", check)
    transaction.changes.take(hidden)
    return seconds


def switch_group(transaction: Transaction, group: str, config: str, *, tried: bool = False) -> int:
    """Make `config` the configuration of a group's ensemble, and return the version that then serves.

    Unless that was `tried`, the running server tries it first, with every segmenter of the group whose check is kept.
    """
    repository, folder = transaction.repository, transaction.repository / group
    before, live = layout.pinned(folder), max(layout.versions(folder), default=0)
    if triton_config.same(layout.config_text(folder), config):
        return transaction.keep(group, live, config)
    if transaction.server and live and not tried:
        for name in shared_store.members(repository, group):
            if checked := shared_store.check_of(repository, name):
                transaction.server.try_out(group, config, checked, name)
    staged = transaction.staging / group
    (staged / str(live + 1)).mkdir(parents=True)
    transaction.add(staged, live + 1, config)
    transaction.take(group, layout.versions(folder)[:-KEEP])
    transaction.retire(set(before), layout.used(repository) | set(before.items()))
    return live + 1
