"""A segmenter whose embedding is baked into a network of its own: how a version of it goes live, and how it leaves.

The ensemble names the exact version of every model it is made of, so nothing it uses changes while new models are put
beside the old ones. The running server tries the new ensemble under a name that no client can know; then the rename
of the real config.pbtxt is the one switch.

    NAME_unet/N+1 > (load) > NAME.next (load, ask, unload) > NAME/N+1, NAME/config.pbtxt > (load) > the oldest leaves
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from slime_export.errors import ExportError
from slime_export.publish.changes import linked
from slime_export.publish.transaction import Transaction
from slime_repository import config as triton_config
from slime_repository import layout, manifest, record
from slime_repository.config import LOADED
from slime_repository.contract import IMAGE_SECONDS
from slime_repository.record import Record, now_in_utc
from slime_repository.shared_store import PUBLISHED, VERSION

# The version that serves, and the one before for the way back.
KEEP = LOADED


class BakedSegmenter:
    """The segmenter `name` in a transaction; `keep`: how many of its versions stay, None for as many as there are."""

    def __init__(self, transaction: Transaction, name: str, keep: int | None = None) -> None:
        self.transaction, self.name = transaction, name
        self.folder = transaction.repository / name
        self.keep = max(KEEP, len(self.versions()) if keep is None else keep)
        self.before = layout.pinned(self.folder)

    def versions(self) -> list[int]:
        """Return the versions that are there, lowest first."""
        return layout.versions(self.folder)

    def live(self) -> int | None:
        """Return the version that serves."""
        return layout.live_version(self.folder)

    def earlier(self) -> list[int]:
        """Return the versions that could serve again."""
        return [each for each in self.versions() if layout.recorded(self.folder, each) and each != self.live()]

    def add_unet(self, files: Path, model: str, config: str) -> int:
        """Put the staged folder `files` beside the versions of `model` there are, load it, and return its version."""
        self.transaction.take_orphans(model, self.before.get(model))
        return self.transaction.add_files(files, model, config)

    def switch(self, new: Record, *, tried: bool = False) -> int:
        """Make the record's configuration the segmenter's, and return the new version.

        Unless that was `tried`, the running server answers the record's check first, and clients are told its seconds.
        What no version uses that is to stay is moved out, and models that nobody uses any more whole.
        """
        transaction, repository = self.transaction, self.transaction.repository
        if transaction.server and not tried:
            seconds = transaction.server.try_out(self.name, new.config, new.check)
            new = replace(new, config=triton_config.with_parameter(new.config, IMAGE_SECONDS, f"{seconds:.3g}"))
        transaction.take_orphans(self.name, self.live())
        version, staged = transaction.next_version(self.name), transaction.staging / self.name
        for key, value in ((VERSION, str(version)), (PUBLISHED, now_in_utc())):
            new = replace(new, config=triton_config.with_parameter(new.config, key, value))
        new.write(staged / str(version))
        transaction.add(staged, version, new.config)
        touched = layout.models_of(repository, self.name) | self.before.keys()
        transaction.take(self.name, self.versions()[: -self.keep])
        # What served before answers until a server that looks into the repository only now and then has looked.
        transaction.retire(touched, layout.used(repository) | set(self.before.items()))
        return version

    def serve_again(self, version: int) -> int:
        """Publish an earlier version's content as a new version, and return its number.

        Never by putting an older folder back: Triton takes what has an older time for unchanged. Files are hard links
        of the old version's, so this takes no room.
        """
        self._verify(f"{self.name}/{version}", version)
        old = record.read(self.folder / str(version))
        pins = triton_config.pins(old.config)
        own = layout.unets(self.transaction.repository, self.name)
        unet = next(model for model in pins if model in own)
        versions = {model: self._shared(model, each, version) for model, each in pins.items() if model != unet}
        config = layout.config_text(self.transaction.repository / unet)
        versions[unet] = self.add_unet(self._linked(unet, pins[unet], version), unet, config)
        new = Record(
            config=triton_config.pinned_to(old.config, versions),
            check=old.check,
            content_of=old.content_of or version,
        )
        return self.switch(new)

    def remove(self) -> None:
        """Take the ensemble away, then what nobody else uses: no request can reach a network that is gone."""
        repository = self.transaction.repository
        models = layout.models_of(repository, self.name)
        if self.folder.exists():
            self.transaction.remove(self.name)
        self.transaction.retire(models, layout.used(repository))

    def _shared(self, model: str, version: int, wanted_by: int) -> int:
        """Return the version of a shared model to be pinned to: the same, or its content published as a new one."""
        folder = self.transaction.repository / model
        if version in layout.versions(folder)[-LOADED:]:
            return self.transaction.keep(model, version)
        files = self._linked(model, version, wanted_by)
        return self.transaction.add_shared_files(files, model, layout.config_text(folder), besides=self.name)

    def _linked(self, model: str, version: int, wanted_by: int) -> Path:
        self._verify(f"{model}/{version}", wanted_by)
        source = self.transaction.repository / model / str(version)
        return linked(source, self.transaction.staging / ".linked" / model)

    def _verify(self, folder: str, version: int) -> None:
        if not (self.transaction.repository / folder).is_dir():
            raise ExportError(
                f"segmenter {self.name}: version {version} cannot serve again, {folder} is not in the repository any "
                "more; publish the segmenter again with export/build.py"
            )
        manifest.require(self.transaction.repository, self.transaction.changes.manifest, folder)
