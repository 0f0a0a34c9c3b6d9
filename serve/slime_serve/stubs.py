"""The Python processes below a Triton server, one for each instance of a Python model: which live, which died.

Triton reaps those it ends itself. One that was killed stays a zombie, and its model goes on calling itself ready.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_NAME = "triton_python_backend_stub"


@dataclass(frozen=True, kw_only=True)
class Stub:
    """``region``: name of its shared memory."""

    pid: int
    model: str
    region: str


class Stubs:
    """Those of the server ``pid``, followed from one look to the next."""

    def __init__(self, pid: int) -> None:
        self._server = pid
        self._known: dict[int, Stub] = {}
        self._ending: set[int] = set()

    def dead(self) -> list[Stub]:
        """Those that were dead at the last look already and still are not reaped; each is told of once."""
        children = _children(self._server)
        zombies = {pid for pid in children if pid in self._known and _state(pid) == "Z"}
        dead = [self._known.pop(pid) for pid in zombies & self._ending]
        self._ending = zombies
        # The command line of a zombie is gone, so it is read while they live.
        for pid in children - self._known.keys():
            if stub := _stub(pid):
                self._known[pid] = stub
        for pid in self._known.keys() - children:
            del self._known[pid]
        return dead


def _children(pid: int) -> set[int]:
    """Started by any of its threads."""
    found: set[int] = set()
    for path in (_PROC / str(pid) / "task").glob("*/children"):
        with contextlib.suppress(OSError):
            found.update(map(int, path.read_text().split()))
    return found


def _state(pid: int) -> str:
    with contextlib.suppress(OSError):
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    return "X"


def _stub(pid: int) -> Stub | None:
    """Command line: stub, REPOSITORY/MODEL/VERSION/FILE, region, …"""
    try:
        words = (_PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    if len(words) < 3 or Path(words[0]).name != _NAME:
        return None
    return Stub(pid=pid, model=Path(words[1]).parent.parent.name, region=words[2])
