"""Waiting for what a test needs to have happened, for some seconds at most; and servers whose answers come in order."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from fake_triton import right_half

SECONDS = 20.0
_MOMENT = 0.005


def until(condition: Callable[[], object], what: str) -> None:
    """Return once `condition` holds; fail, naming `what`, when it does not within SECONDS."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {SECONDS:g} s"
        time.sleep(_MOMENT)


async def until_async(condition: Callable[[], object], what: str) -> None:
    """Do the same without blocking the event loop."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {SECONDS:g} s"
        await asyncio.sleep(_MOMENT)


def together(number: int) -> Callable[[bytes], npt.NDArray[np.uint8]]:
    """Return a server's answer to images that waits until `number` of them are in flight."""
    barrier = threading.Barrier(number)

    def answer(data: bytes) -> npt.NDArray[np.uint8]:
        mask = right_half(data)
        barrier.wait(timeout=SECONDS)
        return mask

    return answer
