"""How far two tensors are apart. Knows nothing of models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from slime_export.errors import ParityError


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Largest and mean absolute difference of two tensors, as shares of the reference's largest value."""

    largest: float
    mean: float


def difference(got: npt.NDArray[Any], expected: npt.NDArray[Any]) -> Difference:
    """Raises ParityError for another shape."""
    if got.shape != expected.shape:
        raise ParityError(f"parity: got shape {got.shape}, expected {expected.shape}; nothing was published")
    scale = max(float(np.abs(expected).max()), float(np.finfo(np.float32).tiny))
    gap = np.abs(got - expected)
    return Difference(largest=float(gap.max()) / scale, mean=float(gap.mean()) / scale)
