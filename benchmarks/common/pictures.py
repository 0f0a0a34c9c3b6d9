"""Pictures to measure on: coloured clouds, because no image is white noise. Needs neither torch nor a file."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image


def picture(side: int, seed: int) -> npt.NDArray[np.uint8]:
    """Return coarse noise enlarged, uint8 (side, side, 3)."""
    chance = np.random.default_rng(seed)
    cells = int(chance.integers(4, 33, 1)[0])
    coarse = chance.integers(0, 256, (cells, cells, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


@lru_cache(maxsize=64)
def encoded(side: int, seed: int) -> bytes:
    """Return the picture as a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture(side, seed)).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()
