"""Enlarges maps bilinearly by matrix products, for numpy arrays and torch tensors alike; imports numpy alone.

Shapes: P parts, h x w the map, H x W what it is enlarged to.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

ArrayT = TypeVar("ArrayT", bound=Any)


@lru_cache(maxsize=64)
def interpolation_matrix(size_in: int, size_out: int) -> npt.NDArray[np.float32]:
    """Return bilinear weights (size_out, size_in) float32 between lines of samples; each row sums to 1.

    Half-pixel centres, clamped at the edges, not antialiased: one axis of
    ``torch.nn.functional.interpolate(mode="bilinear", align_corners=False)``.
    """
    if size_in < 1 or size_out < 1:
        raise ValueError(f"interpolation: got {size_in} -> {size_out} samples, expected at least 1 of each")
    centre = np.maximum((np.arange(size_out) + 0.5) * (size_in / size_out) - 0.5, 0.0)
    low = np.minimum(centre.astype(np.intp), size_in - 1)
    high = np.minimum(low + 1, size_in - 1)
    share = np.where(high > low, centre - low, 0.0)
    matrix = np.zeros((size_out, size_in), np.float32)
    rows = np.arange(size_out)
    matrix[rows, low] = 1.0 - share
    matrix[rows, high] += share.astype(np.float32)
    matrix.setflags(write=False)  # one matrix serves many calls
    return matrix


def enlarge(maps_Xhw: ArrayT, height: int, width: int) -> ArrayT:
    """Enlarge maps (..., h, w) to (..., height, width) like ``interpolate(mode="bilinear", align_corners=False)``."""
    map_height, map_width = maps_Xhw.shape[-2:]
    rows_Hh = like(interpolation_matrix(map_height, height), maps_Xhw)
    columns_wW = like(interpolation_matrix(map_width, width).T, maps_Xhw)
    enlarged: ArrayT = rows_Hh @ maps_Xhw @ columns_wW
    return enlarged


def extremes(maps_Xhw: ArrayT, height: int, width: int) -> tuple[ArrayT, ArrayT]:
    """Return minima and maxima (..., 1, 1) of what ``enlarge`` would give, from a few of its lines.

    Between four samples of the map the enlargement is bilinear, so the extremes lie on the outermost of its lines
    there: two for each sample of the map instead of height / h.
    """
    map_height, map_width = maps_Xhw.shape[-2:]
    rows_Rh = like(_outer_lines(map_height, height), maps_Xhw)
    columns_wC = like(_outer_lines(map_width, width).T, maps_Xhw)
    return lowest_highest(rows_Rh @ maps_Xhw @ columns_wC)


def lowest_highest(maps_Xhw: ArrayT) -> tuple[ArrayT, ArrayT]:
    """Return minima and maxima (..., 1, 1) of maps (..., h, w)."""
    flat_XN = maps_Xhw.reshape(*maps_Xhw.shape[:-2], -1)
    if is_numpy(flat_XN):
        return flat_XN.min(-1)[..., None, None], flat_XN.max(-1)[..., None, None]
    return flat_XN.amin(-1)[..., None, None], flat_XN.amax(-1)[..., None, None]


@lru_cache(maxsize=16)
def _outer_lines(size_in: int, size_out: int) -> npt.NDArray[np.float32]:
    """Return the rows of ``interpolation_matrix`` whose neighbour lies between other samples."""
    matrix = interpolation_matrix(size_in, size_out)
    first = (matrix > 0).argmax(1)
    changes = np.flatnonzero(np.diff(first))
    ends = np.unique(np.concatenate([[0], changes, changes + 1, [size_out - 1]]))
    lines: npt.NDArray[np.float32] = matrix[ends]
    return lines


def is_numpy(array: Any) -> bool:
    """Return whether it is numpy's rather than torch's."""
    return isinstance(array, np.ndarray)


def like(matrix: npt.NDArray[np.float32], example: ArrayT) -> ArrayT:
    """Return ``matrix`` as the same kind, dtype and device as ``example``."""
    same: Any = matrix.astype(example.dtype, copy=False) if is_numpy(example) else example.new_tensor(matrix)
    converted: ArrayT = same
    return converted


def library(example: Any) -> Any:
    """Return numpy or torch, whichever ``example`` is of; this package never imports the latter."""
    return np if is_numpy(example) else sys.modules["torch"]
