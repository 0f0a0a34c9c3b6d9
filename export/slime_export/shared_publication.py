"""Publishes a segmenter in the shared form: its group's models where they are missing, then its file.

    segmenters, encoder, GROUP_unet, was, GROUP (only the first time) > store/.NAME (asked) > store/NAME

The file's rename is the switch: no model is loaded for a segmenter whose group is served already, and every request
is answered with one whole file, the old or the new. Files that were replaced stay in history/ for a rollback.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from slime_export import layout
from slime_export.changes import Changes
from slime_export.common import encoder, python_model
from slime_export.errors import ExportError
from slime_export.lock import WAIT_S, Say, locked
from slime_export.record import Check
from slime_export.release import KEEP, as_version, retire
from slime_export.repository import Published, ensemble_parameters
from slime_export.server import Server
from slime_export.shared import entry_of, group_of
from slime_export.sources import published
from slime_export.transaction import Transaction
from slime_optimize.segmenter import Segmenter
from slime_store import Entry, Store, content
from slime_store.store import ENDING, read
from slime_was import contract
from slime_was.contract import SEGMENTERS, WAS, Form, Versions
from slime_was.shared import STORE, Group, is_group, segmenters_config, shared_ensemble_config, shared_unet_config

HISTORY = "history"
VERSION = "version"


@dataclass(frozen=True, kw_only=True)
class SharedCandidate:
    """What is to be published. `unet` and `encoder` are folders in the staging folder that hold a model.onnx.

    Both are None where the repository has them already. `check` is what a running server is asked before any client.
    """

    name: str
    segmenter: Segmenter
    form: Form
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
    if candidate.name in layout.segmenters(repository):
        raise ExportError(
            f"segmenter {candidate.name}: is in repository {repository} with its embedding baked in; give another "
            "--name, or remove that one first"
        )
    group = group_of(candidate.segmenter, candidate.form)
    with locked(repository, wait_s, say), Changes(repository, staging, lambda: published(repository)) as changes:
        transaction = Transaction(repository, staging, changes, server)
        versions = _group(transaction, candidate, group)
        facts = ensemble_parameters(candidate.segmenter) | candidate.form.parameters()
        entry = entry_of(candidate.segmenter, group, facts)
        version = put(transaction, candidate.name, entry, keep, candidate.check)
    return Published(name=candidate.name, version=version, versions=versions)


def put(transaction: Transaction, name: str, entry: Entry, keep: int, check: Check | None = None) -> int:
    """Makes `entry` the segmenter's file, under the next version's number, which is returned.

    With `check`, the running server answers it first, under a name that no client can ask for by accident.
    """
    folder, store = _store_folder(transaction.repository), store_of(transaction.repository)
    folder.mkdir(exist_ok=True)
    version = max([0, *numbers(transaction.repository, name)]) + 1
    told = Entry(
        text_TD=entry.text_TD,
        noise_Xhw=entry.noise_Xhw,
        weighting=entry.weighting,
        description={**entry.description, "name": name, VERSION: version},
    )
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


def roll_back_shared(transaction: Transaction, name: str, to: int | None, keep: int) -> int:
    """Publishes an earlier version's content anew: that of number `to`, or of the one before. Returns its number."""
    require(transaction.repository, name)
    earlier = numbers(transaction.repository, name)[:-1]
    wanted = earlier[-1] if to is None and earlier else to
    if wanted is None or wanted not in earlier:
        kept = ", ".join(map(str, earlier)) or "none"
        raise ExportError(f"segmenter {name}: has no earlier version {to or ''}".rstrip() + f"; kept: {kept}")
    return put(transaction, name, read(_history(transaction.repository, name) / f"{wanted}{ENDING}"), keep)


def remove_shared(transaction: Transaction, name: str) -> None:
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
    names = store_of(repository).names()
    if name not in names:
        there = ", ".join(names) or "none"
        raise ExportError(f"segmenter {name}: not in repository {repository}; shared ones there: {there}")


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


def _group(transaction: Transaction, candidate: SharedCandidate, group: Group) -> Versions:
    """The group's models, there already or made; and its ensemble, pinned to them."""
    versions = Versions(
        preprocess=python_model(transaction, group.name, SEGMENTERS, SEGMENTERS, segmenters_config()),
        was=python_model(transaction, group.name, WAS, WAS, contract.was_config()),
        vae_encoder=encoder(transaction, candidate.segmenter, candidate.form, candidate.encoder),
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


def groups(repository: Path) -> list[str]:
    """Names of the groups' ensembles, in order."""
    return [model for model in layout.models(repository) if is_group(model)]
