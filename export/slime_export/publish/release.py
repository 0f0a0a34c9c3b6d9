"""The way a version goes live, whether published or rolled back to: networks, check, switch, and what leaves.

The ensemble names the exact version of every model it is made of, so nothing it uses changes while new models are put
beside the old ones. The running server tries the new ensemble under a name that no client can know; then the rename
of the real config.pbtxt is the one switch.

    NAME_unet/N+1 > (load) > NAME.next (load, ask, unload) > NAME/N+1, NAME/config.pbtxt > (load) > the oldest leaves
"""

from __future__ import annotations

from pathlib import Path

from slime_export.publish.transaction import LOADED, Transaction
from slime_repository import layout
from slime_repository import served_code as sources
from slime_repository.record import Record

# The version that serves, and the one before for the way back.
KEEP = LOADED


class Release:
    """One new version of the segmenter `name`; `keep`: how many of its versions stay in the repository, from 2 on."""

    def __init__(self, transaction: Transaction, name: str, keep: int = KEEP) -> None:
        self.transaction, self.name, self.keep = transaction, name, max(KEEP, keep)
        self.folder = transaction.repository / name
        self.before = layout.pinned(self.folder)

    def unet(self, model: str, files: Path, config: str) -> int:
        """Puts the staged folder `files` beside the versions of `model` there are, and loads it."""
        transaction = self.transaction
        transaction.take_orphans(model, self.before.get(model))
        version = transaction.next_version(model)
        transaction.add(as_version(files, transaction.staging / model, version), version, config)
        return version

    def switch(self, record: Record) -> int:
        """Has the running server answer the record's check, then makes its configuration the segmenter's."""
        transaction = self.transaction
        if transaction.server:
            transaction.server.try_out(self.name, record.config, record.check)
        transaction.take_orphans(self.name, layout.live_version(self.folder))
        version = transaction.next_version(self.name)
        staged = transaction.staging / self.name
        record.write(staged / str(version))
        transaction.add(staged, version, record.config)
        return version

    def retire(self) -> None:
        """Moves out what no version uses that is to stay, models that nobody uses any more whole."""
        transaction, repository = self.transaction, self.transaction.repository
        touched = layout.models_of(repository, self.name) | self.before.keys()
        transaction.take(self.name, layout.versions(self.folder)[: -self.keep])
        # What served before answers until a server that looks into the repository only now and then has looked.
        retire(transaction, touched, layout.used(repository) | set(self.before.items()))


def retire(transaction: Transaction, models: set[str], used: set[tuple[str, int]]) -> None:
    """Moves the versions out of `models` that are not among `used` (model, version), and models without any left."""
    for model in sorted(models):
        if sources.is_own(transaction.repository, model) or not (transaction.repository / model).exists():
            continue
        there = layout.versions(transaction.repository / model)
        wanted = [each for each in there if (model, each) in used]
        if wanted:
            transaction.take(model, [each for each in there if each not in wanted])
        else:
            transaction.remove(model)


def as_version(staged: Path, model: Path, version: int) -> Path:
    """The staged files as `model`/`version`; returns `model`."""
    model.mkdir(parents=True, exist_ok=True)
    staged.rename(model / str(version))
    return model
