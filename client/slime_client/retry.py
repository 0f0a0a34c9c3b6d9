"""How long a call may take, and when it is tried again: only on UNAVAILABLE, never past its deadline."""

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from slime_client.errors import INVALID_ARGUMENT, SegmenterError


@dataclass(frozen=True, kw_only=True)
class Retry:
    """Exponential back-off with full jitter, so that clients refused together do not come back together.

    The pause before try n + 1 is uniform in [0, min(longest, first * 2^(n - 1))]
    (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).

    Attributes:
        attempts: tries in all; 1 never tries again.
        first: longest first pause, in seconds.
        longest: no pause is longer, in seconds.
        chance: numbers in [0, 1); `random.Random(7).random` repeats itself.

    Raises:
        SegmenterError: INVALID_ARGUMENT for numbers that make no sense.
    """

    attempts: int = 4
    first: float = 0.1
    longest: float = 2.0
    chance: Callable[[], float] = random.random

    def __post_init__(self) -> None:
        if not isinstance(self.attempts, int) or self.attempts < 1:
            raise SegmenterError(f"retry: got {self.attempts!r} attempts, expected 1 or more", INVALID_ARGUMENT)
        if not 0 <= self.first <= self.longest < math.inf:
            raise SegmenterError(
                f"retry: got pauses from {self.first!r} to {self.longest!r} s, expected 0 <= first <= longest",
                INVALID_ARGUMENT,
            )

    def pause(self, attempt: int) -> float:
        """Seconds to wait after the failed try number `attempt`, counted from 1."""
        return self.chance() * min(self.longest, self.first * 2.0 ** min(attempt - 1, 60))


class Deadline:
    """A point in time, so that several calls share one allowance.

    Args:
        seconds: from now.

    Raises:
        SegmenterError: INVALID_ARGUMENT when that is no positive number.
    """

    def __init__(self, seconds: float) -> None:
        if not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:
            raise SegmenterError(f"timeout: got {seconds!r}, expected a positive number of seconds", INVALID_ARGUMENT)
        self.seconds = float(seconds)
        self._end = time.monotonic() + self.seconds

    def left(self) -> float:
        """Seconds until then; a moment at least, so that gRPC itself says that time is up."""
        return max(self._end - time.monotonic(), 1e-3)
