"""Takes a segmenter away: from the running server, then from the repository, with what nobody else uses.

The ensemble goes first, so that no request can reach a network that is gone; those under way are answered.
"""

from __future__ import annotations

from pathlib import Path

from slime_export.errors import ExportError
from slime_export.publish import shared_store
from slime_export.publish.changes import Changes
from slime_export.publish.lock import WAIT_S, Say, locked, staging
from slime_export.publish.release import retire
from slime_export.publish.server_control import Server
from slime_export.publish.transaction import Transaction
from slime_repository import layout
from slime_repository.served_code import published


def remove(
    repository: Path, name: str, server: Server | None = None, *, wait_s: float = WAIT_S, say: Say = print
) -> list[str]:
    """Removes the segmenter; returns the models that are gone.

    Raises ExportError, ServerError, BusyError or OSError with the repository, and what the server serves, as they were.
    """
    if name in shared_store.names(repository):
        return shared_store.remove_shared(repository, name, server, wait_s=wait_s, say=say)
    _require(repository, name)
    with staging(repository, wait_s, say) as staged, locked(repository, wait_s, say):
        _require(repository, name)
        before = layout.models(repository)
        with Changes(repository, staged, lambda: published(repository)) as changes:
            transaction = Transaction(repository, staged, changes, server)
            models = layout.models_of(repository, name)
            if (repository / name).exists():
                transaction.remove(name)
            retire(transaction, models, layout.used(repository))
        return [model for model in before if not (repository / model).exists()]


def _require(repository: Path, name: str) -> None:
    """Leftovers of a segmenter, where a removal was killed, can be removed as well."""
    layout.require_repository(repository)
    if name in layout.segmenters(repository) or layout.unets(repository, name):
        return
    users = sorted({user for user in layout.segmenters(repository) if name in layout.models_of(repository, user)})
    if users:
        raise ExportError(
            f"model {name}: is no segmenter, and {', '.join(users)} cannot do without it; remove what uses it"
        )
    shared_store.require_baked(repository, name)
