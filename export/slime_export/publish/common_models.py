"""The models that segmenters have in common, as steps of a publication: Python models, and the backbone's encoders."""

from __future__ import annotations

from pathlib import Path

from slime_export.errors import ExportError
from slime_export.graph import accelerators
from slime_export.graph.onnx_export import Signature
from slime_export.graph.tracing import LATENT_CHANNELS as LATENT_CHANNELS
from slime_export.graph.tracing import encoder_signature
from slime_export.publish.release import as_version
from slime_export.publish.transaction import Transaction
from slime_optimize.segmenter import Segmenter
from slime_repository import contract, layout
from slime_repository.config import Accelerator
from slime_repository.contract import Variant
from slime_repository.served_code import is_current, wanted_files


def accelerator(kind: str | None, variant: Variant, signature: Signature) -> Accelerator | None:
    """ONNX Runtime's provider of this kind for a network, or None for its usual ones."""
    return accelerators.accelerator(kind, precision=variant.precision, inputs=signature.inputs) if kind else None


def python_model(transaction: Transaction, besides: str, model: str, kind: str, config: str) -> int:
    """The version of `model`, with this project's code of `kind`: there already, or new.

    Raises ExportError where a new one would push out what an ensemble other than `besides` is pinned to.
    """
    wanted, folder = wanted_files(kind), transaction.repository / model
    latest = max(layout.versions(folder), default=0)
    if latest and is_current(folder, latest, kind):
        transaction.keep(model, latest, config)
        return latest
    transaction.check_users(model, latest + 1, besides=besides)
    # The packages go into the version's own folder, which Triton puts before the model's on sys.path: the versions
    # before keep theirs.
    for name, content in wanted.items():
        path = transaction.staging / model / str(latest + 1) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    transaction.add(transaction.staging / model, latest + 1, config)
    return latest + 1


def encoder(
    transaction: Transaction, segmenter: Segmenter, variant: Variant, traced: Path | None, provider: str | None = None
) -> int:
    """The version of the backbone's encoder: there already, or the `traced` one, a folder in the staging folder."""
    model = variant.encoder_model
    # There already, or published by another while this one was traced.
    if there := layout.encoder_of(transaction.repository, segmenter.backbone_hash, model, segmenter.tiny_hash):
        transaction.keep(model, int(there.name))
        return int(there.name)
    if traced is None:
        raise ExportError(f"repository {transaction.repository}: its {model} is gone; export again")
    config = contract.vae_encoder_config(
        backbone=segmenter.backbone_hash,
        image_size=segmenter.image_size,
        latent_channels=LATENT_CHANNELS,
        latent_size=segmenter.latent_size,
        variant=variant,
        accelerator=accelerator(provider, variant, encoder_signature(segmenter.image_size, segmenter.latent_size)),
        tiny=segmenter.tiny_hash,
    )
    transaction.add(as_version(traced, transaction.staging / model, 1), 1, config)
    return 1
