"""What only old releases of Triton need, such as the wheel's 2.51: each with the release that mended it.

- Until 2.58 (container 25.05) a Triton that is told to stop refuses the requests that are between two models: the
  launcher unloads the ensembles first (`drains`).
- Until 2.65 (26.01) nobody notices that a Python process died: one that was killed stays a zombie, and its model goes
  on calling itself ready. From then on the model's readiness tells it, and the launcher asks (`watches_stubs`).
- Until then, too, nobody answers the requests that a Python process held when it died. Models that read images hold
  them (slime_image/intake.py), so the launcher starts the server again, which clients are told at once
  (`loses_requests`).
- Triton 2.51 never unloads a model one of whose processes died over a request: loaded again, the old one stays, with
  the shared memory of the dead process, and with the processes beside it, which nobody asks any more. All of that is
  given back as soon as nobody can need it (`DeadStubs`).

What is decided here is decided by the version that the running server tells. serve/README.md lists what newer releases
mended besides.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from slime_repository import contract
from slime_serve.memory import FOLDER

_DRAINS, _WATCHES_STUBS = (2, 58), (2, 65)

# Triton gives a dead process up within five seconds, and ends those of a model that it does unload within three.
SETTLED_SECONDS = 30.0
SCAN = 10  # looks
_PROC = Path("/proc")
_NAME = "triton_python_backend_stub"
# Requests that an old model still has queue up at its processes; one that has none uses next to no CPU time.
_LOOK_SECONDS = 5.0
_IDLE_SHARE = 0.02
# Triton makes a region's locks and queues first: the first 48 KiB in 2.51.
_CONTROL_BYTES = 1 << 16


def drains(version: str) -> bool:
    """Return whether a server of this version, such as "2.75.0", answers what it has begun when it is told to stop."""
    return _number(version) >= _DRAINS


def watches_stubs(version: str) -> bool:
    """Return whether a server of this version itself tells that a Python process of a model died."""
    return _number(version) >= _WATCHES_STUBS


def loses_requests(version: str, model: str) -> bool:
    """Return whether requests stay without an answer when a process of this model dies in a server of this version."""
    holds = contract.is_preprocess(model) or model == contract.SEGMENTERS
    return holds and not watches_stubs(version)


def _number(version: str) -> tuple[int, ...]:
    """Return the first two numbers of "2.75.0" or "2.73.0dev"."""
    return tuple(int(number) for number in version.split(".")[:2])


@dataclass(frozen=True, kw_only=True)
class Stub:
    """One such process. ``region``: the name of its shared memory."""

    pid: int
    model: str
    region: str


class DeadStubs:
    """Finds dead Python processes of the server ``pid`` from outside, and gives back what their models leave."""

    def __init__(self, pid: int) -> None:
        self._stubs = Stubs(pid)
        self._leftovers = Leftovers(self._stubs)

    def look(self) -> list[tuple[str, str]]:
        """Return the model of each process that died since the last look, with what happened. Returns at once."""
        dead = self._stubs.dead()
        for stub in dead:
            self._leftovers.died(stub)
        self._leftovers.look()
        return [(stub.model, f"its process {stub.pid} died") for stub in dead]

    def processes(self, model: str) -> Sequence[Stub]:
        """Return the processes of a model that is about to be loaded again, for `replaced`."""
        return self._stubs.of(model)

    def replaced(self, processes: Iterable[Stub]) -> None:
        """End these processes, whose model was loaded anew, once they are idle."""
        self._leftovers.replaced(processes)

    def close(self) -> None:
        """Stop looking."""
        self._leftovers.close()


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


class Orphan:
    """A region whose process is gone: without a name from now on, its pages kept for whoever has them mapped."""

    def __init__(self, region: str) -> None:
        path = FOLDER / region
        try:
            self._file: int | None = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            self._file = None
        path.unlink(missing_ok=True)

    def give_back(self) -> None:
        """Give the pages back too, once they are of no use to anybody. Those that are mapped read as zeros, but for
        those of the locks and queues, which a thread of Triton's may still wait at.
        """
        if self._file is None:
            return
        size = os.fstat(self._file).st_size
        if size > _CONTROL_BYTES:
            with mmap.mmap(self._file, size) as mapped:
                mapped.madvise(mmap.MADV_REMOVE, _CONTROL_BYTES, size - _CONTROL_BYTES)
        self.close()

    def close(self) -> None:
        """Close the region's file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


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
