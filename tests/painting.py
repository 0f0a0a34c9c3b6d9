"""A painted picture for tests of optimize/ and what is built on it, and names they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[1]
Main = Callable[[Sequence[str]], int]


@dataclass(frozen=True)
class Files:
    """The painted picture on disk."""

    image: Path
    mask: Path


PARTS = ("background", "red", "green")


def paint(seed: int = 0) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """A noisy picture (70,90,3) of a red and a green block, and its mask."""
    image = np.random.default_rng(seed).integers(0, 80, (70, 90, 3), dtype=np.uint8)
    mask = np.zeros((70, 90), np.uint8)
    for part, (rows, columns) in enumerate(((slice(10, 50), slice(10, 40)), (slice(30, 60), slice(50, 80))), 1):
        image[rows, columns, part - 1] += 170
        mask[rows, columns] = part
    return image, mask
