"""The shared memory through which Triton and its Python processes exchange tensors, and what is left of it.

Triton removes a region when its model is unloaded; a process that was killed leaves its own behind, for ever.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from pathlib import Path

FOLDER = Path("/dev/shm")
_OURS = re.compile(r"(slime_(\d+)_[0-9a-f]{8}_).+")
_LOCK = "lock"


class Regions:
    """The regions of one launch.

    Their names begin alike, and a lock, held as long as the launcher or its server lives, tells other launches that
    they are in use.
    """

    def __init__(self) -> None:
        self.prefix = f"slime_{os.getpid()}_{secrets.token_hex(4)}_"
        # Locked under another name first: nobody finds the file unlocked.
        hidden = FOLDER / f".{self.prefix}{_LOCK}"
        self.lock = os.open(hidden, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        hidden.rename(FOLDER / f"{self.prefix}{_LOCK}")

    def clear(self) -> None:
        """Remove all of them; no process may use them any more."""
        _remove(self.prefix, besides=_LOCK)

    def close(self) -> None:
        """Remove all of them, and the lock."""
        _remove(self.prefix)
        os.close(self.lock)


def remove_stale() -> int:
    """Remove what launches left that were killed together with their server; return how many regions that were."""
    found = {match.group(1): int(match.group(2)) for path in FOLDER.iterdir() if (match := _OURS.fullmatch(path.name))}
    return sum(_remove(prefix) for prefix, pid in found.items() if _is_stale(prefix, pid))


def _is_stale(prefix: str, pid: int) -> bool:
    """Return whether nobody holds the lock of a launch or, where there is no lock, no process of its number runs."""
    try:
        handle = os.open(FOLDER / f"{prefix}{_LOCK}", os.O_RDWR)
    except FileNotFoundError:
        return not Path(f"/proc/{pid}").exists()
    except OSError:  # Another user's.
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def _remove(prefix: str, besides: str | None = None) -> int:
    paths = [path for path in FOLDER.glob(f"{prefix}*") if path.name != f"{prefix}{besides}"]
    for path in paths:
        path.unlink(missing_ok=True)
    return len(paths)
