"""What Triton keeps of a model whose process was killed: given back as soon as nobody can need it.

Triton 2.51 never unloads a model one of whose processes died over a request: loaded again, the old one stays, with the
shared memory of the dead process, and with the processes beside it, which nobody asks any more.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable

from slime_serve.memory import Orphan
from slime_serve.stubs import Stub, Stubs, cpu_seconds

# Triton gives a dead process up within five seconds, and ends those of a model that it does unload within three.
SETTLED_SECONDS = 30.0
# Requests that an old model still has queue up at its processes; one that has none uses next to no CPU time.
_LOOK_SECONDS = 5.0
_IDLE_SHARE = 0.02


class Leftovers:
    """Of the processes that ``stubs`` knows; ``look`` at them several times a second."""

    def __init__(self, stubs: Stubs) -> None:
        self._stubs = stubs
        self._orphans: list[tuple[float, Orphan]] = []
        self._replaced: dict[Stub, _Replaced] = {}

    def died(self, stub: Stub) -> None:
        """Its shared memory loses its name now, and its pages later."""
        self._orphans.append((time.monotonic() + SETTLED_SECONDS, Orphan(stub.region)))

    def replaced(self, stubs: Iterable[Stub]) -> None:
        """Their model was loaded anew."""
        for stub in stubs:
            self._replaced.setdefault(stub, _Replaced(stub))

    def look(self) -> None:
        now = time.monotonic()
        for due, orphan in [each for each in self._orphans if each[0] <= now]:
            orphan.give_back()
            self._orphans.remove((due, orphan))
        for stub, replaced in list(self._replaced.items()):
            if stub not in self._stubs.of(stub.model):
                del self._replaced[stub]
            elif replaced.is_idle(now):
                self._end(stub)

    def close(self) -> None:
        for _, orphan in self._orphans:
            orphan.close()

    def _end(self, stub: Stub) -> None:
        del self._replaced[stub]
        self._stubs.dismiss(stub)
        with contextlib.suppress(ProcessLookupError):
            os.kill(stub.pid, signal.SIGKILL)
        self.died(stub)


class _Replaced:
    """Looked at for the first time when it should be gone, then every few seconds."""

    def __init__(self, stub: Stub) -> None:
        self._pid = stub.pid
        self._next = time.monotonic() + SETTLED_SECONDS
        self._used: float | None = None

    def is_idle(self, now: float) -> bool:
        if now < self._next:
            return False
        before, self._used = self._used, cpu_seconds(self._pid)
        self._next = now + _LOOK_SECONDS
        return before is not None and self._used - before < _IDLE_SHARE * _LOOK_SECONDS
