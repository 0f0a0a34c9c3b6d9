"""Publishes an exported segmenter into a Triton model repository without a gap, whether or not a server runs.

    shared models > NAME_unet/N+1, NAME/N+1                 (baked_segmenter.py)
    shared models > GROUP_unet, GROUP, where they are missing > store/NAME          (shared_segmenter.py)

A failure undoes every step; a kill leaves whole models and an ensemble that still names the old ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slime_export.errors import ExportError
from slime_export.forms import entry_of, group_of
from slime_export.graph import accelerators
from slime_export.publish.baked_segmenter import KEEP, BakedSegmenter
from slime_export.publish.lock import WAIT_S, Say
from slime_export.publish.server_control import Server
from slime_export.publish.shared_segmenter import SharedSegmenter, switch_group
from slime_export.publish.transaction import Transaction, opened, settle
from slime_optimize.segmenter import Segmenter
from slime_repository import contract, layout, shared_store
from slime_repository.config import Accelerator
from slime_repository.contract import PREPROCESS, SEGMENTERS, WAS, Variant, Versions
from slime_repository.record import Check, Record, now_in_utc
from slime_repository.shared_contract import segmenters_config, shared_ensemble_config, shared_unet_config
from slime_was.tensors import LATENTS, PIXELS


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What is to be published. `unet` and `encoder` are folders in the staging folder that hold a network.

    `encoder` is None where the repository has the backbone's already, and `unet` where it has the group's, in the
    shared form. `check` is what a running server is asked before any client can, and what it must answer.
    `accelerator`: which of ONNX Runtime's providers runs the networks, None for its usual ones. `settings_changed`:
    test-time settings that were changed at export, for the segmenter's parameters.
    """

    name: str
    segmenter: Segmenter
    unet: Path | None
    encoder: Path | None
    check: Check
    variant: Variant = field(default_factory=Variant)
    accelerator: str | None = None
    shared: bool = False
    settings_changed: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        layout.check_name(self.name)


@dataclass(frozen=True, kw_only=True)
class Published:
    """Where it went: the segmenter's own version, and those of the models that it is served by."""

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
    """Put `candidate` into `repository`; with `server`, make the running server use it.

    `staging` is as `lock.staging` gives it; `keep`: versions of the segmenter that stay for the way back, with the
    new one. Raises RepositoryError, ServerError, BusyError or OSError with the repository, and what the server serves,
    as they were.
    """
    with opened(repository, staging, server, wait_s, say) as transaction:
        layout.require_current(repository)
        _require_free(repository, candidate)
        put = _put_shared if candidate.shared else _put_baked
        version, versions = put(transaction, candidate, keep)
    python_models = (SEGMENTERS if candidate.shared else reading_of(candidate.segmenter).model, WAS)
    settle(repository, python_models, server, wait_s=wait_s, say=say)
    return Published(name=candidate.name, version=version, versions=versions)


def _put_baked(transaction: Transaction, candidate: Candidate, keep: int) -> tuple[int, Versions]:
    name, made, variant = candidate.name, candidate.segmenter, candidate.variant
    segmenter, reading = BakedSegmenter(transaction, name, keep), reading_of(made)
    config = contract.preprocess_config(reading)
    preprocess = transaction.python_model(reading.model, PREPROCESS, config, besides=name)
    was = transaction.python_model(WAS, WAS, contract.was_config(), besides=name)
    encoder = _encoder(transaction, candidate)
    unet, model = candidate.unet, contract.unet_name(name, variant)
    assert unet, "each baked segmenter has a network of its own"
    config = contract.unet_config(
        segmenter=name,
        parts=len(made.parts),
        latent_channels=_channels(made),
        latent_size=made.latent_size,
        variant=variant,
        accelerator=_accelerator(candidate, {LATENTS: (_channels(made), made.latent_size, made.latent_size)}),
    )
    versions = Versions(
        preprocess=preprocess, was=was, vae_encoder=encoder, unet=segmenter.add_unet(unet, model, config)
    )
    config = contract.ensemble_config(
        segmenter=name,
        versions=versions,
        parameters=ensemble_parameters(made, candidate.settings_changed),
        reading=reading,
        variant=variant,
    )
    return segmenter.switch(Record(config=config, check=candidate.check)), versions


def _put_shared(transaction: Transaction, candidate: Candidate, keep: int) -> tuple[int, Versions]:
    """Publish a shared segmenter, pinned to its group's models, which are there already or are made."""
    made, group = candidate.segmenter, group_of(candidate.segmenter, candidate.variant)
    preprocess = transaction.python_model(SEGMENTERS, SEGMENTERS, segmenters_config(), besides=group.name)
    was = transaction.python_model(WAS, WAS, contract.was_config(), besides=group.name)
    encoder, config = _encoder(transaction, candidate), shared_unet_config(group)
    if there := layout.versions(transaction.repository / group.unet):
        unet = transaction.keep(group.unet, there[-1], config)
    elif candidate.unet is None:
        raise ExportError(f"repository {transaction.repository}: its {group.unet} is gone; export again")
    else:
        unet = transaction.add_files(candidate.unet, group.unet, config)
    versions = Versions(preprocess=preprocess, was=was, vae_encoder=encoder, unet=unet)
    switch_group(transaction, group.name, shared_ensemble_config(group, versions, {"backbone": made.backbone_hash}))
    facts = ensemble_parameters(made, candidate.settings_changed) | candidate.variant.parameters()
    put = SharedSegmenter(transaction, candidate.name, keep).put(entry_of(made, group, facts), candidate.check)
    return put, versions


def _encoder(transaction: Transaction, candidate: Candidate) -> int:
    """Return the version of the backbone's encoder: there already, or the candidate's, which is added."""
    made, variant = candidate.segmenter, candidate.variant
    # There already, or published by another while this one was traced.
    there = layout.encoder_of(transaction.repository, made.backbone_hash, variant.encoder_model, made.tiny_hash)
    if there:
        return transaction.keep(variant.encoder_model, int(there.name))
    if candidate.encoder is None:
        raise ExportError(f"repository {transaction.repository}: its {variant.encoder_model} is gone; export again")
    config = contract.vae_encoder_config(
        backbone=made.backbone_hash,
        image_size=made.image_size,
        latent_channels=_channels(made),
        latent_size=made.latent_size,
        variant=variant,
        accelerator=_accelerator(candidate, {PIXELS: (3, made.image_size, made.image_size)}),
        tiny=made.tiny_hash,
    )
    return transaction.add_files(candidate.encoder, variant.encoder_model, config)


def _accelerator(candidate: Candidate, inputs: dict[str, tuple[int, ...]]) -> Accelerator | None:
    kind = candidate.accelerator
    return accelerators.accelerator(kind, precision=candidate.variant.precision, inputs=inputs) if kind else None


def _channels(segmenter: Segmenter) -> int:
    """Return the channels of the latents, which the noise that was learned with has as well."""
    return int(segmenter.noise.shape[1])


def _require_free(repository: Path, candidate: Candidate) -> None:
    """Raise ExportError where a segmenter of the other form has this name."""
    others = layout.segmenters(repository) if candidate.shared else shared_store.names(repository)
    if candidate.name in others:
        how = "with its embedding baked in" if candidate.shared else "in the shared form"
        raise ExportError(
            f"segmenter {candidate.name}: is in repository {repository} {how}; give another --name, or remove that one "
            "first"
        )


def reading_of(segmenter: Segmenter) -> contract.Reading:
    """Return how the segmenter's images are read. Raises ExportError for what cannot be served."""
    settings = segmenter.settings
    try:
        return contract.Reading(
            image_size=segmenter.image_size,
            channel_order=settings.channel_order,
            postprocess=settings.postprocess(segmenter.image_size),
        )
    except ValueError as error:
        raise ExportError(str(error)) from error


def ensemble_parameters(segmenter: Segmenter, settings_changed: Mapping[str, Any]) -> dict[str, str]:
    """Return what clients read from the model's configuration, and which settings were changed at export."""
    changed = {"settings_changed": json.dumps(dict(settings_changed))} if settings_changed else {}
    return changed | {
        "parts": json.dumps(list(segmenter.parts), ensure_ascii=False),
        "colours": json.dumps([list(colour) for colour in segmenter.colours]),
        "form": "baked",
        "image_size": str(segmenter.image_size),
        "backbone": segmenter.backbone_hash,
        "segmenter": segmenter.hash,
        "created": segmenter.created or now_in_utc(),
    }
