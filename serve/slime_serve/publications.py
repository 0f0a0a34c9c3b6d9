"""Notices what is published to a running server, and taken away: which version of each segmenter serves."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from slime_repository import layout, shared_store
from slime_repository.errors import RepositoryError
from slime_serve.control import Control, UnansweredError
from slime_store import StoreError

_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class Published:
    """What serves under a segmenter's name: its version, and "baked" or "shared"."""

    version: int
    form: str


class Publications:
    """Looks every two seconds, from a thread of its own until `close`. ``say``: takes one line for each change.

    ``tell``: takes what serves, by the segmenters' names, whenever it has changed.
    """

    def __init__(
        self,
        repository: Path,
        control: Control,
        *,
        say: Callable[[str], None],
        tell: Callable[[Mapping[str, Published]], None],
    ) -> None:
        self._repository, self._control, self._say, self._tell = repository, control, say, tell
        self._store = shared_store.store_of(repository)
        self._known = self._serving()
        tell(self._known)
        self._stop = threading.Event()
        threading.Thread(target=self._run, name="publications", daemon=True).start()

    def close(self) -> None:
        """Stop looking."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(_SECONDS):
            # While the server starts again, or a segmenter is being written, nothing is known; it is asked again.
            with contextlib.suppress(UnansweredError, RepositoryError, StoreError, OSError):
                self._compare(self._serving())

    def _compare(self, found: Mapping[str, Published]) -> None:
        for name in sorted(found.keys() | self._known.keys()):
            now, before = found.get(name), self._known.get(name)
            if now is None:
                self._say(f"segmenter {name}: serves no more")
            elif now != before:
                since = f"version {before.version} before" if before else "new"
                self._say(f"segmenter {name}: version {now.version} serves now ({since}), {now.form}")
        if found != self._known:
            self._known = found
            self._tell(found)

    def _serving(self) -> Mapping[str, Published]:
        ready = self._control.ready()
        baked = {
            name: Published(version=ready[name], form="baked")
            for name in layout.segmenters(self._repository)
            if name in ready
        }
        entries = {name: self._store.get(name).description for name in self._store.names()}
        shared = {
            name: Published(version=int(told[shared_store.VERSION]), form="shared")
            for name, told in entries.items()
            if told["model"] in ready
        }
        return baked | shared
