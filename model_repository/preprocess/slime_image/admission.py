"""Limits how many images are under way on a server, before anything is done for them.

Triton could limit a model's queue, but then its batcher sends nothing ahead to a network that is busy, sometimes misses
that it is free again, and looks only after half a second (2.51, and the code of newer releases). And what such a queue
refuses has been decoded. So the processes that decode count the images between them and the masks, in a small file
that they share: `was` notes there which image it has finished.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

# Two full batches wait while a third is computed.
MOST = 24


class Places:
    """The places of a server's images; the file holds int64: begin and end of a finished image, begins of MOST others.

    An image counts as under way until one that began later has finished: those that were cancelled on the way, or
    failed there, are passed by others. Where none finishes any more, because all were lost, one is let in each time
    that the last took has passed. All times are nanoseconds of the system's monotonic clock.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self._file, 8 * (2 + MOST))
        self._lock = threading.Lock()
        self._times = np.memmap(path, np.int64, "r+", shape=(2 + MOST,))

    def take(self, now: int) -> bool:
        """Take a place for an image that begins now; False where all are taken."""
        with self._alone():
            (began, ended), begins = self._times[:2].tolist(), self._times[2:]
            last = max(ended, int(begins.max()))
            if begins.min() > began and now - last < ended - began:
                return False
            begins[begins.argmin()] = now
            return True

    def free(self, began: int) -> None:
        """Free the place of an image that began then and will not reach its mask."""
        with self._alone():
            begins = self._times[2:]
            begins[begins == began] = 0

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep out other threads, and other processes, which the file's own lock is for."""
        with self._lock:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)


def shared_file() -> Path:
    """Return the file of this process's server: the one its launcher names, else one by Triton's process."""
    return Path(os.environ.get("SLIME_SERVE_PLACES", f"/dev/shm/slime_{os.getppid()}_places"))
