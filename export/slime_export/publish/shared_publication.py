"""Publishes a segmenter in the shared form: its group's models where they are missing, then its file.

    segmenters, encoder, GROUP_unet, was, GROUP (only the first time) > store/.NAME (asked) > store/NAME

No model is loaded for a segmenter whose group is served already; shared_store.py has what becomes of the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slime_export.errors import ExportError
from slime_export.publish.changes import Changes
from slime_export.publish.common_models import encoder, python_model
from slime_export.publish.lock import WAIT_S, Say, locked
from slime_export.publish.publication import Published, ensemble_parameters
from slime_export.publish.release import KEEP, as_version
from slime_export.publish.server_control import Server
from slime_export.publish.shared_store import put, require_free
from slime_export.publish.transaction import Transaction
from slime_export.shared_form import entry_of, group_of
from slime_optimize.segmenter import Segmenter
from slime_repository import contract, layout
from slime_repository.contract import SEGMENTERS, WAS, Variant, Versions
from slime_repository.record import Check
from slime_repository.served_code import published
from slime_repository.shared_contract import Group, segmenters_config, shared_ensemble_config, shared_unet_config


@dataclass(frozen=True, kw_only=True)
class SharedCandidate:
    """What is to be published. `unet` and `encoder` are folders in the staging folder that hold a model.onnx.

    Both are None where the repository has them already. `check` is what a running server is asked before any client.
    """

    name: str
    segmenter: Segmenter
    variant: Variant
    check: Check
    unet: Path | None
    encoder: Path | None

    def __post_init__(self) -> None:
        layout.check_name(self.name)


def publish_shared(
    repository: Path,
    staging: Path,
    candidate: SharedCandidate,
    server: Server | None = None,
    *,
    keep: int = KEEP,
    wait_s: float = WAIT_S,
    say: Say = print,
) -> Published:
    """Puts `candidate` into `repository`; a running server answers for it at once, `server` is asked before that.

    Raises ExportError, ServerError, BusyError or OSError with the repository as it was.
    """
    group = group_of(candidate.segmenter, candidate.variant)
    with locked(repository, wait_s, say), Changes(repository, staging, lambda: published(repository)) as changes:
        require_free(repository, candidate.name, shared=True)
        transaction = Transaction(repository, staging, changes, server)
        versions = _group(transaction, candidate, group)
        facts = ensemble_parameters(candidate.segmenter) | candidate.variant.parameters()
        entry = entry_of(candidate.segmenter, group, facts)
        version = put(transaction, candidate.name, entry, keep, candidate.check)
    return Published(name=candidate.name, version=version, versions=versions)


def _group(transaction: Transaction, candidate: SharedCandidate, group: Group) -> Versions:
    """The group's models, there already or made; and its ensemble, pinned to them."""
    versions = Versions(
        preprocess=python_model(transaction, group.name, SEGMENTERS, SEGMENTERS, segmenters_config()),
        was=python_model(transaction, group.name, WAS, WAS, contract.was_config()),
        vae_encoder=encoder(transaction, candidate.segmenter, candidate.variant, candidate.encoder),
        unet=_unet(transaction, candidate, group),
    )
    config = shared_ensemble_config(group, versions, {"backbone": candidate.segmenter.backbone_hash})
    folder = transaction.repository / group.name
    live = max(layout.versions(folder), default=0)
    if layout.config_text(folder) == config:
        transaction.keep(group.name, live, config)
        return versions
    staged = transaction.staging / group.name
    (staged / str(live + 1)).mkdir(parents=True)
    transaction.add(staged, live + 1, config)
    return versions


def _unet(transaction: Transaction, candidate: SharedCandidate, group: Group) -> int:
    config = shared_unet_config(group)
    if there := layout.versions(transaction.repository / group.unet):
        transaction.keep(group.unet, there[-1], config)
        return there[-1]
    if candidate.unet is None:
        raise ExportError(f"repository {transaction.repository}: its {group.unet} is gone; export again")
    transaction.add(as_version(candidate.unet, transaction.staging / group.unet, 1), 1, config)
    return 1
