"""The Python processes below a Triton server, one for each instance of a Python model: which live, which died.

Triton reaps those it ends itself. One that was killed stays a zombie, and its model goes on calling itself ready.
Triton 2.51 never unloads a model one of whose processes died over a request: loaded again, the old one stays, with the
shared memory of the dead process, and with the processes beside it, which nobody asks any more. All of that is given
back as soon as nobody can need it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from slime_serve.memory import Orphan

# Triton gives a dead process up within five seconds, and ends those of a model that it does unload within three.
SETTLED_SECONDS = 30.0
SCAN = 10  # looks
_PROC = Path("/proc")
_NAME = "triton_python_backend_stub"
# Requests that an old model still has queue up at its processes; one that has none uses next to no CPU time.
_LOOK_SECONDS = 5.0
_IDLE_SHARE = 0.02


@dataclass(frozen=True, kw_only=True)
class Stub:
    """One such process. ``region``: the name of its shared memory."""

    pid: int
    model: str
    region: str


class Stubs:
    """Follows the processes of the server ``pid`` from one look to the next.

    Only one look of SCAN goes through all of the server's threads: they are hundreds, and looks come ten a second.
    """

    def __init__(self, pid: int) -> None:
        self._server = pid
        self._known: dict[int, Stub] = {}
        self._dismissed: set[int] = set()
        self._ending: set[int] = set()
        self._looks = 0

    def dead(self) -> list[Stub]:
        """Return those that were dead at the last look already and still are not reaped; each is returned once."""
        if self._looks % SCAN == 0:
            self._scan()
        self._looks += 1
        states = {pid: _state(pid, self._server) for pid in self._known}
        zombies = {pid for pid, state in states.items() if state == "Z"}
        dead = [self._known.pop(pid) for pid in zombies & self._ending]
        self._ending = zombies
        for pid in [pid for pid, state in states.items() if state is None]:
            del self._known[pid]
        return dead

    def of(self, model: str) -> list[Stub]:
        """Return the processes of a model that live, as far as is known."""
        return [stub for stub in self._known.values() if stub.model == model]

    def dismiss(self, stub: Stub) -> None:
        """Forget a process that is about to be ended, so that ``dead`` does not return it."""
        self._dismissed.add(stub.pid)
        self._known.pop(stub.pid, None)

    def _scan(self) -> None:
        # The command line of a zombie is gone, so it is read while they live.
        for pid in _children(self._server) - self._known.keys() - self._dismissed:
            if stub := _stub(pid):
                self._known[pid] = stub


class Leftovers:
    """What is to be given back of the processes that ``stubs`` knows; ``look`` at it several times a second."""

    def __init__(self, stubs: Stubs) -> None:
        self._stubs = stubs
        self._orphans: list[tuple[float, Orphan]] = []
        self._replaced: dict[Stub, _Replaced] = {}

    def died(self, stub: Stub) -> None:
        """Take the name of a dead process's shared memory away now, and its pages later."""
        self._orphans.append((time.monotonic() + SETTLED_SECONDS, Orphan(stub.region)))

    def replaced(self, stubs: Iterable[Stub]) -> None:
        """End these processes, whose model was loaded anew, once they are idle."""
        for stub in stubs:
            self._replaced.setdefault(stub, _Replaced(stub))

    def look(self) -> None:
        """Give back what is due. Returns at once."""
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
        """Close the files of what is not given back yet."""
        for _, orphan in self._orphans:
            orphan.close()

    def _end(self, stub: Stub) -> None:
        del self._replaced[stub]
        self._stubs.dismiss(stub)
        with contextlib.suppress(ProcessLookupError):
            os.kill(stub.pid, signal.SIGKILL)
        self.died(stub)


class _Replaced:
    """A process that nobody asks any more: looked at first when it should be gone, then every few seconds."""

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


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that the process has used so far; 0 where it is gone."""
    with contextlib.suppress(OSError):
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _children(pid: int) -> set[int]:
    """Return the processes that any thread of the process started."""
    found: set[int] = set()
    for path in (_PROC / str(pid) / "task").glob("*/children"):
        with contextlib.suppress(OSError):
            found.update(map(int, path.read_text().split()))
    return found


def _state(pid: int, parent: int) -> str | None:
    """Return the process's state as the letter in /proc; None where it is gone, or is not a child of ``parent``."""
    with contextlib.suppress(OSError):
        state, its_parent = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[:2]
        return state if int(its_parent) == parent else None
    return None


def _stub(pid: int) -> Stub | None:
    """Read a process's command line: stub, REPOSITORY/MODEL/VERSION/FILE, region, …; None for another program's."""
    try:
        words = (_PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    if len(words) < 3 or Path(words[0]).name != _NAME:
        return None
    return Stub(pid=pid, model=Path(words[1]).parent.parent.name, region=words[2])
