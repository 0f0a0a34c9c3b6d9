"""Joint bilateral upsampling: scores enlarged so that their edges follow the image's.

Maps are coarse, and a bilinear enlargement blurs parts over their outlines: the paper's own weakness, tiny parts.
Here each fine pixel takes a mean of the scores around it, weighted by distance and by likeness of colour
(Kopf et al., Joint Bilateral Upsampling, 2007):

    J[x] = sum_y k(x, y) U[y] / sum_y k(x, y),   k = exp(-|x - y|^2 / 2 s^2) exp(-|I[x] - I[y]|^2 / 2 g^2)

with U the bilinear enlargement, I the image, s a few samples of the map, g the tolerated difference of colour.
Runs on numpy arrays and torch tensors alike.
"""

from __future__ import annotations

from typing import Any, TypeVar

from slime_was.interpolation import enlarge, is_numpy, library

ArrayT = TypeVar("ArrayT", bound=Any)

REACH = 4  # samples of the map to each side
SPREAD = 3.0  # standard deviation s, in samples of the map
# Rows are worked in bands that stay in a core's cache: half the time. A GPU has no use for bands.
BAND_ELEMENTS = 1 << 15
FINEST = 4  # pixels of the result for each sample of the map, at most: cost grows with its square


def joint_bilateral(scores_Phw: ArrayT, image_3SS: ArrayT, tolerance: float) -> ArrayT:
    """Scores (P, h, w) and the image (3, S, S) in [-1, 1], of one kind, to scores (P, G, G) with G <= S.

    ``tolerance``: the standard deviation g of a colour's difference, for channels of 0..1. S must be a multiple of h;
    G is the largest divisor of S up to FINEST * h.
    """
    parts, map_side = scores_Phw.shape[0], scores_Phw.shape[1]
    guide_3GG = _reduced((image_3SS + 1) / 2, _guide_side(image_3SS.shape[-1], map_side))
    side = guide_3GG.shape[-1]
    step = max(1, side // map_side)
    scores_PGG = enlarge(scores_Phw, side, side)
    both_XGG = _padded(library(scores_Phw).concatenate([scores_PGG, guide_3GG]), REACH * step)
    smoothed_PGG: ArrayT = 0 * scores_PGG
    band = side if not is_numpy(scores_Phw) else max(1, BAND_ELEMENTS // (side * len(both_XGG)))
    for top in range(0, side, band):
        rows_Xbg = both_XGG[:, top : min(top + band, side) + 2 * REACH * step]
        smoothed_PGG[:, top : top + band] = _smoothed(rows_Xbg, parts, step, tolerance)
    return smoothed_PGG


def _smoothed(rows_Xbg: ArrayT, parts: int, step: int, tolerance: float) -> ArrayT:
    """J of a band of rows, from scores and colours (P + 3, rows, columns) that reach beyond it on every side."""
    reach = REACH * step
    height, width = rows_Xbg.shape[1] - 2 * reach, rows_Xbg.shape[2] - 2 * reach
    guide_3bG = rows_Xbg[parts:, reach : reach + height, reach : reach + width]
    total_PbG, weights_bG = 0 * rows_Xbg[:parts, :height, :width], 0 * guide_3bG[0]
    for down in range(-REACH, REACH + 1):
        for right in range(-REACH, REACH + 1):
            top, left = reach + down * step, reach + right * step
            seen_XbG = rows_Xbg[:, top : top + height, left : left + width]
            apart_bG = ((seen_XbG[parts:] - guide_3bG) ** 2).sum(0)
            near = -(down**2 + right**2) / (2 * SPREAD**2)
            weight_bG = library(apart_bG).exp(apart_bG * (-0.5 / tolerance**2) + near)
            total_PbG += weight_bG * seen_XbG[:parts]
            weights_bG += weight_bG
    smoothed_PbG: ArrayT = total_PbG / weights_bG
    return smoothed_PbG


def _guide_side(side: int, map_side: int) -> int:
    return next(each for each in range(min(side, FINEST * map_side), 0, -1) if side % each == 0)


def _reduced(image_3SS: ArrayT, side: int) -> ArrayT:
    """Means over squares."""
    block = image_3SS.shape[-1] // side
    if block == 1:
        return image_3SS
    squares: ArrayT = image_3SS.reshape(3, side, block, side, block).mean(4).mean(2)
    return squares


def _padded(maps_XGG: ArrayT, width: int) -> ArrayT:
    """The outermost values go on beyond the edge."""
    side = maps_XGG.shape[-1]
    places = [min(max(i - width, 0), side - 1) for i in range(side + 2 * width)]
    index = library(maps_XGG).asarray(places)
    if not is_numpy(maps_XGG):
        index = index.to(maps_XGG.device)
    padded: ArrayT = maps_XGG[:, index][:, :, index]
    return padded
