"""Measures answers without a truth to compare them with, for watching a running server.

Shapes: P parts (background first), h x w the map, H x W the mask.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# Lines of a map that are looked at, about: merged patches have as many as the fitted image.
_LINES = 64


def foreground(mask_HW: npt.NDArray[np.uint8]) -> float:
    """Return the share of the pixels that belong to a part, 0 to 1."""
    return float(np.count_nonzero(mask_HW)) / mask_HW.size


def margin(scores_Phw: npt.NDArray[np.float32]) -> float:
    """Return how clearly the argmax wins, 0 to 1: the mean over pixels of (best - second) / (best - worst).

    Of maps of 128 lines or more, only so many lines and columns count that 64 to 127 of each are left, evenly spread.
    Near 0 the parts are as good as chosen by chance, as with another kind of image or a broken network. A pixel where
    all parts score alike counts as 0, and so does a segmenter of one part.
    """
    if len(scores_Phw) < 2:
        return 0.0
    height, width = scores_Phw.shape[1:]
    some_Phw = scores_Phw[:, :: max(1, height // _LINES), :: max(1, width // _LINES)]
    ranked_Phw = np.partition(some_Phw, (-2, -1), axis=0)
    best_hw, second_hw = ranked_Phw[-1], ranked_Phw[-2]
    span_hw = best_hw - some_Phw.min(axis=0)
    return float(np.mean((best_hw - second_hw) / np.where(span_hw > 0, span_hw, 1)))
