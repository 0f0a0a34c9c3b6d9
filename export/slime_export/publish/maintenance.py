"""Rolls segmenters back, removes them, and brings them up to date with this project's code, in either form.

None of it needs PyTorch or the backbone. Each is one transaction: where it fails, the repository and what the server
serves are as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slime_export.errors import ExportError, ServerError
from slime_export.publish.baked_segmenter import BakedSegmenter
from slime_export.publish.lock import WAIT_S, Say
from slime_export.publish.server_control import Server
from slime_export.publish.shared_segmenter import SharedSegmenter, switch_group
from slime_export.publish.transaction import Transaction, changing, settle
from slime_export.publish.trial import Trial
from slime_repository import config as triton_config
from slime_repository import layout, record, served_code, shared_store
from slime_repository.contract import PREPROCESS, SEGMENTERS, WAS, is_preprocess, was_config
from slime_repository.errors import RepositoryError
from slime_repository.record import Check, Record
from slime_repository.shared_contract import is_group, segmenters_config


def rollback(
    repository: Path,
    name: str,
    to: int | None = None,
    server: Server | None = None,
    *,
    wait_s: float = WAIT_S,
    say: Say = print,
) -> tuple[int, int]:
    """Make version `to` (default: the one before) of the segmenter serve again: (its number, the new version's).

    The old content goes live as a new version, checked like any other. Raises RepositoryError, ServerError, BusyError
    or OSError with the repository, and what the server serves, as they were.
    """
    _require_segmenter(repository, name)
    with changing(repository, server, wait_s, say) as transaction:
        _require_segmenter(repository, name)
        segmenter = _segmenter(transaction, name)
        chosen = _chosen(segmenter, repository, to)
        say(f"verifying version {chosen} of {name}")
        return chosen, segmenter.serve_again(chosen)


def remove(
    repository: Path, name: str, server: Server | None = None, *, wait_s: float = WAIT_S, say: Say = print
) -> list[str]:
    """Take the segmenter away, from the running server first; return it and the models that are gone with it.

    Raises RepositoryError, ServerError, BusyError or OSError with the repository, and what the server serves, as they
    were.
    """
    _require_removable(repository, name)
    with changing(repository, server, wait_s, say) as transaction:
        _require_removable(repository, name)
        before = layout.models(repository)
        _segmenter(transaction, name).remove()
        gone = [model for model in before if not (repository / model).exists()]
        return gone if name in gone else [name, *gone]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one segmenter: the version of its ensemble that runs the current code, or why it was left."""

    name: str
    version: int | None = None
    reason: str = ""


def upgrade(
    repository: Path,
    names: Sequence[str] = (),
    server: Server | None = None,
    *,
    wait_s: float = WAIT_S,
    say: Say = print,
) -> list[Outcome]:
    """Pin the segmenters `names`, or all, to the current code of the Python models; return what became of each.

    Those that run it already are left out. Each is tried on its training image first: by the running server, else here
    in ONNX Runtime. One whose mask would not be as expected stays as it is. All segmenters of a group change together.
    Raises RepositoryError, ServerError, BusyError or OSError with the repository, and what the server serves, as they
    were.
    """
    layout.require_repository(repository)
    for name in names:
        _require_segmenter(repository, name)
    layout.require_current(repository)
    with changing(repository, server, wait_s, say) as transaction:
        layout.require_current(repository)
        shared = {name: str(told["model"]) for name, told in shared_store.descriptions(repository).items()}
        chosen = dict.fromkeys([shared.get(name, name) for name in names] or layout.ensembles(repository))
        outdated = [name for name in chosen if not _is_current(repository, name)]
        if not outdated:
            return []
        trial = None if server else Trial(repository)
        models = sorted({model for name in outdated for model in layout.pinned(repository / name) if _kind(model)})
        current = {model: transaction.python_model(model, _kind(model), _config(repository, model)) for model in models}
        outcomes: list[Outcome] = []
        for name in outdated:
            say(f"trying {name} with the current code")
            repinned = triton_config.pinned_to(
                layout.config_text(repository / name), {**layout.pinned(repository / name), **current}
            )
            outcomes += (_upgraded_group if is_group(name) else _upgraded)(transaction, name, repinned, trial)
        transaction.retire(set(models), layout.used(repository))
    settle(repository, models, server, wait_s=wait_s, say=say)
    return outcomes


def _upgraded(transaction: Transaction, name: str, config: str, trial: Trial | None) -> list[Outcome]:
    """Bring one baked segmenter up to date, if it answers as expected."""
    segmenter = BakedSegmenter(transaction, name)
    folder = segmenter.folder / str(segmenter.live())
    try:
        check = record.read_check(folder)
        _require_answer(transaction, name, config, check, None, trial)
    except (RepositoryError, ServerError) as error:
        return [Outcome(name=name, reason=str(error))]
    new = Record(config=config, check=check, content_of=record.facts(folder).get("content_of"))
    return [Outcome(name=name, version=segmenter.switch(new, tried=True))]


def _upgraded_group(transaction: Transaction, group: str, config: str, trial: Trial | None) -> list[Outcome]:
    """Bring all segmenters of a group up to date, if each answers as expected."""
    repository = transaction.repository
    members = shared_store.members(repository, group)
    try:
        for name in members:
            check = shared_store.check_of(repository, name)
            if check is None:
                raise RepositoryError(f"the image that {name} is to be tried on was not kept; export {name} again")
            _require_answer(transaction, group, config, check, name, trial)
    except (RepositoryError, ServerError) as error:
        return [Outcome(name=name, reason=str(error)) for name in members]
    version = switch_group(transaction, group, config, tried=True)
    return [Outcome(name=name, version=version) for name in members]


def _require_answer(
    transaction: Transaction, ensemble: str, config: str, check: Check, segmenter: str | None, trial: Trial | None
) -> None:
    """Raise ServerError, or RepositoryError without a server, unless this configuration answers as expected."""
    if transaction.server:
        transaction.server.try_out(ensemble, config, check, segmenter)
    elif trial and (complaint := trial.complaint(config, check, segmenter)):
        raise RepositoryError(f"{segmenter or ensemble} {complaint}")


def _segmenter(transaction: Transaction, name: str) -> BakedSegmenter | SharedSegmenter:
    shared = name in shared_store.names(transaction.repository)
    return SharedSegmenter(transaction, name) if shared else BakedSegmenter(transaction, name)


def _chosen(segmenter: BakedSegmenter | SharedSegmenter, repository: Path, to: int | None) -> int:
    """Return the version to go back to."""
    live, earlier = segmenter.live(), segmenter.earlier()
    kept = earlier if to is not None else [each for each in earlier if live is None or each < live]
    listed = ", ".join(map(str, kept)) or "none"
    if to is not None and to == live:
        raise ExportError(f"segmenter {segmenter.name}: version {to} is the one that serves; kept beside it: {listed}")
    if not kept or (to is not None and to not in kept):
        wanted = f"no version {to}" if to is not None else "no version before the one that serves"
        raise ExportError(
            f"segmenter {segmenter.name}: {wanted} in repository {repository} to go back to; kept: {listed}; "
            "publish it again with export/build.py"
        )
    return to if to is not None else kept[-1]


def _require_segmenter(repository: Path, name: str) -> None:
    """Raise ExportError, with those there are, where no segmenter is called so."""
    layout.require_repository(repository)
    there = sorted({*layout.segmenters(repository), *shared_store.names(repository)})
    if name not in there:
        raise ExportError(
            f"segmenter {name}: not in repository {repository}; segmenters there: {', '.join(there) or 'none'}"
        )


def _require_removable(repository: Path, name: str) -> None:
    """Raise ExportError where nothing of that name can be removed; leftovers of a killed removal can."""
    layout.require_repository(repository)
    there = {*layout.segmenters(repository), *shared_store.names(repository)}
    if name in there or layout.unets(repository, name):
        return
    users = sorted(user for user in layout.segmenters(repository) if name in layout.models_of(repository, user))
    if users:
        raise ExportError(
            f"model {name}: is no segmenter, and {', '.join(users)} cannot do without it; remove what uses it"
        )
    _require_segmenter(repository, name)


def _is_current(repository: Path, ensemble: str) -> bool:
    """Return whether all Python models that an ensemble is pinned to run this project's code."""
    return all(
        served_code.is_current(repository / model, version, kind)
        for model, version in layout.pinned(repository / ensemble).items()
        if (kind := _kind(model))
    )


def _kind(model: str) -> str:
    """Return whose code a Python model runs; nothing for a network."""
    return PREPROCESS if is_preprocess(model) else model if model in (WAS, SEGMENTERS) else ""


def _config(repository: Path, model: str) -> str:
    """Return the configuration of a Python model: how one reads images is in its own alone."""
    return {WAS: was_config, SEGMENTERS: segmenters_config}.get(model, lambda: layout.config_text(repository / model))()
