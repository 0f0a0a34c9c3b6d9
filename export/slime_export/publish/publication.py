"""Publishes an exported segmenter into a Triton model repository without a gap, whether or not a server runs.

A failure undoes every step; a kill leaves whole models and an ensemble that still names the old ones.

    shared models > release.py: NAME_unet/N+1, check, switch, what is too old leaves
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from slime_export.errors import ExportError
from slime_export.graph.tracing import unet_signature
from slime_export.publish import shared_store
from slime_export.publish.changes import Changes
from slime_export.publish.common_models import LATENT_CHANNELS, accelerator, encoder, python_model
from slime_export.publish.lock import WAIT_S, Say, locked
from slime_export.publish.release import KEEP, Release
from slime_export.publish.server_control import Server
from slime_export.publish.transaction import Transaction
from slime_optimize.segmenter import Segmenter
from slime_repository import contract, layout
from slime_repository.contract import PREPROCESS, WAS, Variant, Versions
from slime_repository.record import Check, Record
from slime_repository.served_code import published


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
    variant: Variant = field(default_factory=Variant)
    accelerator: str | None = None

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
        shared_store.require_free(repository, candidate.name, shared=False)
        transaction = Transaction(repository, staging, changes, server)
        return _Publication(transaction, candidate, keep).run()


class _Publication:
    """One run of `publish`: its steps, in order."""

    def __init__(self, transaction: Transaction, candidate: Candidate, keep: int) -> None:
        self.transaction, self.candidate = transaction, candidate
        self.release = Release(transaction, candidate.name, keep)
        self.reading = reading_of(candidate.segmenter)

    def run(self) -> Published:
        made, given = self.candidate, (self.transaction, self.candidate.name)
        versions = Versions(
            preprocess=python_model(*given, self.reading.model, PREPROCESS, contract.preprocess_config(self.reading)),
            was=python_model(*given, WAS, WAS, contract.was_config()),
            vae_encoder=encoder(self.transaction, made.segmenter, made.variant, made.encoder, made.accelerator),
            unet=self._unet(),
        )
        version = self.release.switch(Record(config=self._ensemble_config(versions), check=made.check))
        self.release.retire()
        return Published(name=made.name, version=version, versions=versions)

    def _unet(self) -> int:
        segmenter, variant = self.candidate.segmenter, self.candidate.variant
        config = contract.unet_config(
            segmenter=self.candidate.name,
            parts=len(segmenter.parts),
            latent_channels=LATENT_CHANNELS,
            latent_size=segmenter.latent_size,
            variant=variant,
            accelerator=accelerator(
                self.candidate.accelerator, variant, unet_signature(segmenter.latent_size, variant)
            ),
        )
        return self.release.unet(
            contract.unet_name(self.candidate.name, self.candidate.variant), self.candidate.unet, config
        )

    def _ensemble_config(self, versions: Versions) -> str:
        return contract.ensemble_config(
            segmenter=self.candidate.name,
            versions=versions,
            parameters=ensemble_parameters(self.candidate.segmenter),
            reading=self.reading,
            variant=self.candidate.variant,
        )


def reading_of(segmenter: Segmenter) -> contract.Reading:
    """How the segmenter's images are read. Raises ExportError for what cannot be served."""
    settings = segmenter.settings
    try:
        return contract.Reading(
            image_size=segmenter.image_size,
            channel_order=settings.channel_order,
            postprocess=settings.postprocess(segmenter.image_size),
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
