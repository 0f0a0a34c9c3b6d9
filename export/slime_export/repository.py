"""Publishes an exported segmenter into a Triton model repository without a gap, whether or not a server runs.

A failure undoes every step; a kill leaves whole models and an ensemble that still names the old ones.

    shared models > release.py: NAME_unet/N+1, check, switch, what is too old leaves
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from slime_export import layout
from slime_export.changes import Changes
from slime_export.errors import ExportError
from slime_export.lock import WAIT_S, Say, locked
from slime_export.record import Check, Record
from slime_export.release import KEEP, Release, as_version
from slime_export.server import Server
from slime_export.sources import PACKAGES, published, wanted_files
from slime_export.transaction import Transaction
from slime_optimize.segmenter import Segmenter
from slime_was import contract
from slime_was.contract import PREPROCESS, WAS, Form, Versions

LATENT_CHANNELS = 4


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What is to be published. `unet` and `encoder` are folders in the staging folder that hold a model.onnx.

    `encoder` is None where the repository has the backbone's already. `check` is what a running server is asked before
    any client can, and what it must answer.
    """

    name: str
    segmenter: Segmenter
    unet: Path
    encoder: Path | None
    check: Check
    form: Form = field(default_factory=Form)

    def __post_init__(self) -> None:
        layout.check_name(self.name)


@dataclass(frozen=True, kw_only=True)
class Published:
    """Where it went: the ensemble's own version, and those it is pinned to."""

    name: str
    version: int
    versions: Versions


def publish(
    repository: Path,
    staging: Path,
    candidate: Candidate,
    server: Server | None = None,
    *,
    keep: int = KEEP,
    wait_s: float = WAIT_S,
    say: Say = print,
) -> Published:
    """Puts `candidate` into `repository`; with `server`, makes the running server use it.

    `staging` is as `lock.staging` gives it; `keep`: versions of the segmenter that stay for the way back, with the
    new one. Raises ExportError, ServerError, BusyError or OSError with the repository, and what the server serves, as
    they were.
    """
    with locked(repository, wait_s, say), Changes(repository, staging, lambda: published(repository)) as changes:
        transaction = Transaction(repository, staging, changes, server)
        return _Publication(transaction, candidate, keep).run()


class _Publication:
    """One run of `publish`: its steps, in order."""

    def __init__(self, transaction: Transaction, candidate: Candidate, keep: int) -> None:
        self.transaction, self.candidate = transaction, candidate
        self.release = Release(transaction, candidate.name, keep)
        self.reading = reading_of(candidate.segmenter)

    def run(self) -> Published:
        versions = Versions(
            preprocess=self._python_model(self.reading.model, PREPROCESS, contract.preprocess_config(self.reading)),
            was=self._python_model(WAS, WAS, contract.was_config()),
            vae_encoder=self._encoder(),
            unet=self._unet(),
        )
        version = self.release.switch(Record(config=self._ensemble_config(versions), check=self.candidate.check))
        self.release.retire()
        return Published(name=self.candidate.name, version=version, versions=versions)

    def _python_model(self, model: str, kind: str, config: str) -> int:
        """The version of `model`, of PREPROCESS's or WAS's kind, with this project's code: there already, or new."""
        transaction, wanted = self.transaction, wanted_files(kind)
        folder = transaction.repository / model
        latest = max(layout.versions(folder), default=0)
        if latest and layout.python_files(folder, latest, PACKAGES[kind].__name__) == wanted:
            transaction.keep(model, latest, config)
            return latest
        transaction.check_users(model, latest + 1, besides=self.candidate.name)
        # The package goes into the version's own folder, which Triton puts before the model's on sys.path: the
        # versions before keep theirs.
        for name, content in wanted.items():
            path = transaction.staging / model / str(latest + 1) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        transaction.add(transaction.staging / model, latest + 1, config)
        return latest + 1

    def _encoder(self) -> int:
        transaction, segmenter = self.transaction, self.candidate.segmenter
        model = self.candidate.form.encoder_model
        # There already, or published by another while this one was traced.
        if there := layout.encoder_of(transaction.repository, segmenter.backbone_hash, model, segmenter.tiny_hash):
            transaction.keep(model, int(there.name))
            return int(there.name)
        if self.candidate.encoder is None:
            raise ExportError(f"repository {transaction.repository}: its {model} is gone; export again")
        config = contract.vae_encoder_config(
            backbone=segmenter.backbone_hash,
            image_size=segmenter.image_size,
            latent_channels=LATENT_CHANNELS,
            latent_size=segmenter.latent_size,
            form=self.candidate.form,
            tiny=segmenter.tiny_hash,
        )
        transaction.add(as_version(self.candidate.encoder, transaction.staging / model, 1), 1, config)
        return 1

    def _unet(self) -> int:
        segmenter = self.candidate.segmenter
        config = contract.unet_config(
            segmenter=self.candidate.name,
            parts=len(segmenter.parts),
            latent_channels=LATENT_CHANNELS,
            latent_size=segmenter.latent_size,
            form=self.candidate.form,
        )
        return self.release.unet(
            contract.unet_name(self.candidate.name, self.candidate.form), self.candidate.unet, config
        )

    def _ensemble_config(self, versions: Versions) -> str:
        return contract.ensemble_config(
            segmenter=self.candidate.name,
            versions=versions,
            parameters=ensemble_parameters(self.candidate.segmenter),
            reading=self.reading,
            form=self.candidate.form,
        )


def reading_of(segmenter: Segmenter) -> contract.Reading:
    """How the segmenter's images are read. Raises ExportError for what cannot be served."""
    settings = segmenter.settings
    try:
        return contract.Reading(
            image_size=segmenter.image_size,
            channel_order=settings.channel_order,
            weighting=settings.weighting(segmenter.image_size),
        )
    except ValueError as error:
        raise ExportError(str(error)) from error


def ensemble_parameters(segmenter: Segmenter) -> dict[str, str]:
    """What clients read from the model's configuration."""
    return {
        "parts": json.dumps(list(segmenter.parts), ensure_ascii=False),
        "colours": json.dumps([list(colour) for colour in segmenter.colours]),
        "form": "baked",
        "image_size": str(segmenter.image_size),
        "backbone": segmenter.backbone_hash,
        "segmenter": segmenter.hash,
        "created": segmenter.created or datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
