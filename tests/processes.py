"""Looking at processes from outside, through /proc."""

from __future__ import annotations

import time
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")


def descendants(pid: int) -> list[int]:
    """Processes below ``pid``, all generations."""
    children = [int(word) for path in Path(f"/proc/{pid}/task").glob("*/children") for word in path.read_text().split()]
    return children + [each for child in children for each in descendants(child)]


def name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def server_of(launcher: int) -> int:
    """The tritonserver that a launcher has started."""
    return next(pid for pid in descendants(launcher) if name(pid) == "tritonserver")


def stubs_of(launcher: int) -> dict[str, list[int]]:
    """The live Python processes of each model that a launcher serves."""
    found: dict[str, list[int]] = {}
    for pid in sorted(descendants(launcher)):
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        if words[0].endswith("backend_stub"):
            found.setdefault(Path(words[1]).parent.parent.name, []).append(pid)
    return found


def running(pids: list[int]) -> list[int]:
    """Those that have not ended within some seconds; a zombie has ended."""
    deadline = time.monotonic() + 30
    while (left := [pid for pid in pids if _state(pid) not in "ZX"]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def regions(pid: int) -> list[Path]:
    """Shared memory of the launcher ``pid``, without the empty file that it locks."""
    return [path for path in SHARED_MEMORY.glob(f"slime_{pid}_*") if not path.name.endswith("_lock")]


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"
