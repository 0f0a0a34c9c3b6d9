"""Rolls a segmenter back: the content of an old version goes live again, as a new version.

Never by putting an older folder back: Triton takes what has an older time for unchanged. Files are hard links of the
old version's, so a rollback takes no room; models that several segmenters share are pinned as they were where the
server can still have them, else published anew. Like a publication it is checked before any client sees it, and
undone whole where it fails.
"""

from __future__ import annotations

from pathlib import Path

from slime_export.errors import ExportError
from slime_export.publish import shared_store
from slime_export.publish.changes import Changes, linked
from slime_export.publish.lock import WAIT_S, Say, locked, staging
from slime_export.publish.release import KEEP, Release, as_version
from slime_export.publish.server_control import Server
from slime_export.publish.transaction import LOADED, Transaction
from slime_repository import config, layout, manifest, record
from slime_repository.record import Record
from slime_repository.served_code import published


def rollback(
    repository: Path,
    name: str,
    to: int | None = None,
    server: Server | None = None,
    *,
    wait_s: float = WAIT_S,
    say: Say = print,
) -> tuple[int, int]:
    """Makes version `to` (default: the one before) of the segmenter serve again: (its number, the new version's).

    Raises ExportError, ServerError, BusyError or OSError with the repository, and what the server serves, as they were.
    """
    if name in shared_store.names(repository):
        return shared_store.rollback_shared(repository, name, to, server, wait_s=wait_s, say=say)
    shared_store.require_baked(repository, name)
    with staging(repository, wait_s, say) as staged, locked(repository, wait_s, say):
        shared_store.require_baked(repository, name)
        chosen = _chosen(repository, name, to)
        with Changes(repository, staged, lambda: published(repository)) as changes:
            say(f"verifying version {chosen} of {name}")
            version = _Rollback(Transaction(repository, staged, changes, server), name, chosen).run()
    return chosen, version


def _chosen(repository: Path, name: str, to: int | None) -> int:
    """The version to go back to."""
    folder = repository / name
    live = layout.live_version(folder)
    kept = [each for each in layout.versions(folder) if layout.recorded(folder, each) and each != live]
    if to is None:
        kept = [each for each in kept if live is None or each < live]
    if to == live:
        raise ExportError(f"segmenter {name}: version {to} is the one that serves; kept beside it: {_listed(kept)}")
    if not kept or (to is not None and to not in kept):
        wanted = f"no version {to}" if to is not None else "no version before the one that serves"
        raise ExportError(
            f"segmenter {name}: {wanted} in repository {repository} to go back to; kept: {_listed(kept)}; "
            "publish it again with export/build.py"
        )
    return to if to is not None else kept[-1]


def _listed(versions: list[int]) -> str:
    return ", ".join(map(str, versions)) or "none"


class _Rollback:
    """One run of `rollback`."""

    def __init__(self, transaction: Transaction, name: str, to: int) -> None:
        self.transaction, self.name, self.to = transaction, name, to
        self.folder = transaction.repository / name
        # As many as there are now: the option is the publication's.
        self.release = Release(transaction, name, max(KEEP, len(layout.versions(self.folder))))

    def run(self) -> int:
        self._verify(f"{self.name}/{self.to}")
        old = record.read(self.folder / str(self.to))
        pins = layout.pins(old.config)
        unet = next(model for model in pins if model in layout.unets(self.transaction.repository, self.name))
        versions = {model: self._shared(model, version) for model, version in pins.items() if model != unet}
        versions[unet] = self._unet(unet, pins[unet])
        new = Record(
            config=config.pinned_to(old.config, versions),
            check=old.check,
            content_of=old.content_of or self.to,
        )
        version = self.release.switch(new)
        self.release.retire()
        return version

    def _unet(self, model: str, version: int) -> int:
        files = self._linked(model, version)
        return self.release.unet(model, files, layout.config_text(self.transaction.repository / model))

    def _shared(self, model: str, version: int) -> int:
        """The version of a shared model to be pinned to: the same, or its content published as a new one."""
        transaction = self.transaction
        if version in layout.versions(transaction.repository / model)[-LOADED:]:
            transaction.keep(model, version)
            return version
        new = transaction.next_version(model)
        transaction.check_users(model, new, besides=self.name)
        files = self._linked(model, version)
        config = layout.config_text(transaction.repository / model)
        transaction.add(as_version(files, transaction.staging / model, new), new, config)
        return new

    def _linked(self, model: str, version: int) -> Path:
        self._verify(f"{model}/{version}")
        source = self.transaction.repository / model / str(version)
        return linked(source, self.transaction.staging / ".linked" / model)

    def _verify(self, folder: str) -> None:
        if not (self.transaction.repository / folder).is_dir():
            raise ExportError(
                f"segmenter {self.name}: version {self.to} cannot serve again, {folder} is not in the repository any "
                "more; publish the segmenter again with export/build.py"
            )
        manifest.require(self.transaction.repository, self.transaction.changes.manifest, folder)
