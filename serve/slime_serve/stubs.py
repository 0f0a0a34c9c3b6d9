"""The Python processes below a Triton server, one for each instance of a Python model: which live, which died.

Triton reaps those it ends itself. One that was killed stays a zombie, and its model goes on calling itself ready.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_NAME = "triton_python_backend_stub"
SCAN = 10  # looks


@dataclass(frozen=True, kw_only=True)
class Stub:
    """``region``: name of its shared memory."""

    pid: int
    model: str
    region: str


class Stubs:
    """Those of the server ``pid``, followed from one look to the next.

    All of its threads are gone through in one look of SCAN alone: they are hundreds, and looks come ten a second.
    """

    def __init__(self, pid: int) -> None:
        self._server = pid
        self._known: dict[int, Stub] = {}
        self._dismissed: set[int] = set()
        self._ending: set[int] = set()
        self._looks = 0

    def dead(self) -> list[Stub]:
        """Those that were dead at the last look already and still are not reaped; each is told of once."""
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
        """Those of a model that live, as far as is known."""
        return [stub for stub in self._known.values() if stub.model == model]

    def dismiss(self, stub: Stub) -> None:
        """Its end is wanted, and not told of."""
        self._dismissed.add(stub.pid)
        self._known.pop(stub.pid, None)

    def _scan(self) -> None:
        """The command line of a zombie is gone, so it is read while they live."""
        for pid in _children(self._server) - self._known.keys() - self._dismissed:
            if stub := _stub(pid):
                self._known[pid] = stub


def cpu_seconds(pid: int) -> float:
    """That the process has used so far; 0 where it is gone."""
    with contextlib.suppress(OSError):
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _children(pid: int) -> set[int]:
    """Started by any of its threads."""
    found: set[int] = set()
    for path in (_PROC / str(pid) / "task").glob("*/children"):
        with contextlib.suppress(OSError):
            found.update(map(int, path.read_text().split()))
    return found


def _state(pid: int, parent: int) -> str | None:
    """Its letter in /proc; None where it is gone, or was another's."""
    with contextlib.suppress(OSError):
        state, its_parent = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[:2]
        return state if int(its_parent) == parent else None
    return None


def _stub(pid: int) -> Stub | None:
    """Command line: stub, REPOSITORY/MODEL/VERSION/FILE, region, …"""
    try:
        words = (_PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    if len(words) < 3 or Path(words[0]).name != _NAME:
        return None
    return Stub(pid=pid, model=Path(words[1]).parent.parent.name, region=words[2])
