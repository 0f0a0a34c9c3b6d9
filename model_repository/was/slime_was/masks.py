"""Turns scores into a mask: enlargement and argmax, in bands of rows and columns.

The same code runs on numpy arrays (the server) and on torch tensors (training, evaluation), so both give the
same mask.

Shapes: P parts (background first), h x w the map, H x W the wanted mask.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

from slime_was.interpolation import interpolation_matrix, is_numpy, library, like

ArrayT = TypeVar("ArrayT", bound=Any)

# Scores of one band. Small enough to stay in a core's cache (1 MiB as float32), which makes the
# argmax several times faster than whole-image arrays, and to keep a 12-megapixel mask of 77 parts small.
BAND_ELEMENTS = 1 << 18
# These lie between few samples; the others, whose weights are 0, are left out of the product.
BAND_COLUMNS = 256
# On a GPU the cost is the number of kernels, not the cache.
BAND_ELEMENTS_GPU = 1 << 25


def segment(scores_Phw: ArrayT, height: int, width: int) -> ArrayT:
    """Return the mask: scores enlarged bilinearly to height x width, then the best part of each pixel.

    scores_Phw: (P, h, w) float32, 1 <= P <= 256. Returns (height, width) uint8 part numbers, of the same kind and
    on the same device; ties go to the lowest number. Equal to ``interpolate(...).argmax`` of torch up to
    rounding, but worked in bands, so that memory does not grow with P * height * width.
    Raises ValueError for other shapes or a size under 1.
    """
    if scores_Phw.ndim != 3 or not 1 <= scores_Phw.shape[0] <= 256:
        raise ValueError(f"scores: got shape {tuple(scores_Phw.shape)}, expected (parts, h, w) with 1 to 256 parts")
    parts, map_height, map_width = scores_Phw.shape
    if (height, width) == (map_height, map_width):
        return best(scores_Phw)
    columns_wW = interpolation_matrix(map_width, width).T
    rows_Hh = like(interpolation_matrix(map_height, height), scores_Phw)
    # As (h, P*w), so that one small product gives any band of rows for all parts at once.
    lines_hX = scores_Phw.swapaxes(0, 1).reshape(map_height, parts * map_width)
    mask_HW = _empty_mask(scores_Phw, height, width)
    down, across = _tile(scores_Phw, width)
    for top in range(0, height, down):
        rows_bh = rows_Hh[top : top + down]
        band_Yw = (rows_bh @ lines_hX).reshape(len(rows_bh) * parts, map_width)
        for left in range(0, width, across):
            columns_wb = columns_wW[:, left : left + across]
            # Of the samples, those that these columns lie between.
            used = slice((columns_wb[:, 0] > 0).argmax(), map_width - (columns_wb[::-1, -1] > 0).argmax())
            tile_Yb = band_Yw[:, used] @ like(columns_wb[used], scores_Phw)
            tile_bPb = tile_Yb.reshape(len(rows_bh), parts, -1)
            mask_HW[top : top + down, left : left + across] = best(tile_bPb.swapaxes(0, 1))
    return mask_HW


def best(scores_PX: ArrayT) -> ArrayT:
    """Return (...) uint8: the number of the highest of the P scores (P, ...), the lowest number where several are."""
    found: Any
    if is_numpy(scores_PX):
        # numpy's argmax along any but the last axis takes 5 to 30 times as long.
        found, highest_X = np.zeros(scores_PX.shape[1:], np.uint8), scores_PX[0].copy()
        for part, scores_X in enumerate(scores_PX[1:], start=1):
            np.maximum(found, (scores_X > highest_X) * np.uint8(part), out=found)
            np.maximum(highest_X, scores_X, out=highest_X)
    else:
        found = scores_PX.argmax(0).to(library(scores_PX).uint8)
    best_X: ArrayT = found
    return best_X


def _empty_mask(example: ArrayT, height: int, width: int) -> ArrayT:
    empty: Any = (
        np.empty((height, width), np.uint8)
        if is_numpy(example)
        else example.new_empty((height, width), dtype=library(example).uint8)
    )
    mask_HW: ArrayT = empty
    return mask_HW


def _tile(example_Phw: Any, width: int) -> tuple[int, int]:
    """Return the rows and columns that are worked on at a time."""
    on_gpu = not is_numpy(example_Phw) and example_Phw.device.type != "cpu"
    pixels = max(1, (BAND_ELEMENTS_GPU if on_gpu else BAND_ELEMENTS) // len(example_Phw))
    across = min(width, pixels) if on_gpu else min(width, pixels, BAND_COLUMNS)
    return pixels // across, across
