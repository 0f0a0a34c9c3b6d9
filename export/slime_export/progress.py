"""Long work says what it did, and how long that took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from slime_export.publish.lock import Say


@contextmanager
def stage(say: Say, what: str) -> Iterator[None]:
    """A line with the seconds that the block took, once it is through."""
    begun = time.perf_counter()
    yield
    say(f"{what}: {time.perf_counter() - begun:.1f} s")
