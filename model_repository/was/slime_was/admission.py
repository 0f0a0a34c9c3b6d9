"""Tells `preprocess`, in a file of the server's own, which image has reached its mask, so that the next may begin.

`preprocess` lets in a limited number of images: slime_image/admission.py, which is not importable from here, has the
reasons and the file's form.
"""

from __future__ import annotations

import os
import struct
import time


class Finished:
    """The file's first two numbers, int64: when the image that finished last began, and when it finished."""

    def __init__(self) -> None:
        path = os.environ.get("SLIME_SERVE_PLACES", f"/dev/shm/slime_{os.getppid()}_places")
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def note(self, began: int) -> None:
        """Free the place of the image that began then, in nanoseconds of the monotonic clock, and of those before."""
        os.pwrite(self._file, struct.pack("=qq", began, time.monotonic_ns()), 0)
