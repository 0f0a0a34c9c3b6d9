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
        # What was read last, and of which state of the server or of a file: reading takes longer than looking.
        self._ready: dict[str, int] = {}
        self._baked: list[str] = []
        self._shared: dict[str, tuple[int, Published, str]] = {}
        self._known: Mapping[str, Published] | None = None
        self._stop = threading.Event()
        self._look()
        threading.Thread(target=self._run, name="publications", daemon=True).start()

    def close(self) -> None:
        """Stop looking."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(_SECONDS):
            self._look()

    def _look(self) -> None:
        # While the server starts again, or a segmenter is being written, nothing is known; it is asked again.
        with contextlib.suppress(UnansweredError, RepositoryError, OSError):
            found = self._serving()
            if found == self._known or self._stop.is_set():
                return
            if self._known is not None:
                self._say_changes(self._known, found)
            self._known = found
            self._tell(found)

    def _say_changes(self, known: Mapping[str, Published], found: Mapping[str, Published]) -> None:
        for name in sorted(found.keys() | known.keys()):
            now, before = found.get(name), known.get(name)
            if now is None:
                self._say(f"segmenter {name}: serves no more")
            elif now != before:
                since = f"version {before.version} before" if before else "new"
                self._say(f"segmenter {name}: version {now.version} serves now ({since}), {now.form}")

    def _serving(self) -> Mapping[str, Published]:
        ready = self._control.ready()
        if ready != self._ready:
            self._ready, self._baked = ready, layout.segmenters(self._repository)
        baked = {name: Published(version=ready[name], form="baked") for name in self._baked if name in ready}
        entries = {name: self._entry(name) for name in shared_store.names(self._repository)}
        return baked | {name: published for name, (_, published, model) in entries.items() if model in ready}

    def _entry(self, name: str) -> tuple[int, Published, str]:
        """Return when a shared segmenter's file was written, what it tells, and the model that serves it."""
        changed = shared_store.store_of(self._repository).path(name).stat().st_mtime_ns
        if name not in self._shared or self._shared[name][0] != changed:
            told = shared_store.entry(self._repository, name).description
            published = Published(version=int(told[shared_store.VERSION]), form="shared")
            self._shared[name] = (changed, published, str(told["model"]))
        return self._shared[name]
