"""The arithmetic that turns attention maps into a mask: WAS weighting (eq. 6), absent parts, enlargement, argmax.

The same code runs on numpy arrays (the server) and on torch tensors (training, evaluation), so both give the
same mask. It knows nothing of images, models or files, and imports numpy alone.

Shapes: P parts (background first), h x w the map, N = h*w its pixels, H x W the wanted mask.
"""

from __future__ import annotations

import sys
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

ArrayT = TypeVar("ArrayT", bound=Any)

# Scores of one band of rows. Small enough to stay in a core's cache (1 MiB as float32), which makes the
# argmax several times faster than whole-image arrays, and to keep a 12-megapixel mask of 77 parts small.
BAND_ELEMENTS = 1 << 18
# On a GPU the cost is the number of kernels, not the cache.
BAND_ELEMENTS_GPU = 1 << 25


def accumulate(cross_PN: ArrayT, self_NN: ArrayT) -> ArrayT:
    """Weighted accumulated self-attention, eq. 6: ``WAS[p, q] = sum_k self[q, k] * cross[p, k]``.

    cross_PN: (..., P, N) float, each part's cross-attention. self_NN: (..., N, N) float, row q is what pixel q
    attends to. Leading dimensions broadcast. Returns (..., P, N) of the same kind and dtype.
    """
    was_PN: ArrayT = cross_PN @ self_NN.swapaxes(-1, -2)
    return was_PN


def drop_absent(was_PN: ArrayT, cross_PN: ArrayT, threshold: float) -> ArrayT:
    """Score 0 everywhere for each part whose cross-attention never reaches ``threshold``.

    was_PN, cross_PN: (..., P, N). Background (part 0) is never dropped; threshold 0 drops nothing. Returns a new
    array (..., P, N), or ``was_PN`` itself where nothing can be dropped.
    """
    if threshold <= 0:
        return was_PN
    present_P1: Any = (cross_PN >= float(threshold)).any(-1)[..., None]
    present_P1[..., 0, :] = True
    kept_PN: ArrayT = was_PN * present_P1
    return kept_PN


def scores(cross_BPhw: ArrayT, self_BNN: ArrayT, threshold: float) -> ArrayT:
    """What the mask is the argmax of: eq. 6, then absent parts dropped.

    cross_BPhw: (B, P, h, w), self_BNN: (B, N, N) with N = h*w, threshold: as in ``drop_absent``. Returns
    (B, P, h, w). Raises ValueError where the shapes do not belong together.
    """
    batch, parts, height, width = cross_BPhw.shape
    if tuple(self_BNN.shape) != (batch, height * width, height * width):
        raise ValueError(
            f"maps: got cross-attention {tuple(cross_BPhw.shape)} with self-attention {tuple(self_BNN.shape)}, "
            f"expected self-attention {(batch, height * width, height * width)}"
        )
    cross_BPN = cross_BPhw.reshape(batch, parts, height * width)
    was_BPN = drop_absent(accumulate(cross_BPN, self_BNN), cross_BPN, threshold)
    scores_BPhw: ArrayT = was_BPN.reshape(batch, parts, height, width)
    return scores_BPhw


def interpolation_matrix(size_in: int, size_out: int) -> npt.NDArray[np.float32]:
    """Bilinear weights (size_out, size_in) float32 between lines of samples; each row sums to 1.

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
    return matrix


def segment(scores_Phw: ArrayT, height: int, width: int) -> ArrayT:
    """The mask: scores enlarged bilinearly to height x width, then the best part of each pixel.

    scores_Phw: (P, h, w) float32, 1 <= P <= 256. Returns (height, width) uint8 part numbers, of the same kind and
    on the same device; ties go to the lowest number. Equal to ``interpolate(...).argmax`` of torch up to
    rounding, but worked in bands of rows, so that memory does not grow with P * height * width.
    Raises ValueError for other shapes or a size under 1.
    """
    if scores_Phw.ndim != 3 or not 1 <= scores_Phw.shape[0] <= 256:
        raise ValueError(f"scores: got shape {tuple(scores_Phw.shape)}, expected (parts, h, w) with 1 to 256 parts")
    parts, map_height, map_width = scores_Phw.shape
    columns_wW = _like(interpolation_matrix(map_width, width).T, scores_Phw)
    rows_Hh = _like(interpolation_matrix(map_height, height), scores_Phw)
    # (h, P*w): one small product then gives any band of rows for all parts at once.
    lines_hX = scores_Phw.swapaxes(0, 1).reshape(map_height, parts * map_width)
    mask_HW = _empty_mask(scores_Phw, height, width)
    band = max(1, _band_elements(scores_Phw) // (parts * width))
    for top in range(0, height, band):
        rows_bh = rows_Hh[top : top + band]
        band_bPw = (rows_bh @ lines_hX).reshape(len(rows_bh), parts, map_width)
        mask_HW[top : top + band] = (band_bPw @ columns_wW).argmax(1)
    return mask_HW


def _is_numpy(array: Any) -> bool:
    return isinstance(array, np.ndarray)


def _like(matrix: npt.NDArray[np.float32], example: ArrayT) -> ArrayT:
    """``matrix`` as the same kind, dtype and device as ``example``."""
    same: Any = matrix.astype(example.dtype, copy=False) if _is_numpy(example) else example.new_tensor(matrix)
    converted: ArrayT = same
    return converted


def _empty_mask(example: ArrayT, height: int, width: int) -> ArrayT:
    # Where a torch tensor exists torch is loaded already; this package never imports it.
    empty: Any = (
        np.empty((height, width), np.uint8)
        if _is_numpy(example)
        else example.new_empty((height, width), dtype=sys.modules["torch"].uint8)
    )
    mask_HW: ArrayT = empty
    return mask_HW


def _band_elements(example: Any) -> int:
    on_gpu = not _is_numpy(example) and example.device.type != "cpu"
    return BAND_ELEMENTS_GPU if on_gpu else BAND_ELEMENTS
