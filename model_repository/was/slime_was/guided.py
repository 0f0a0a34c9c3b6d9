"""Enlarges scores so that their edges follow the image's: joint bilateral upsampling, and no specks.

Maps are coarse, and a bilinear enlargement blurs parts over their outlines: the paper's own weakness, tiny parts.
Here each fine pixel takes a mean of the samples around it, weighted by distance and by likeness of colour
(Kopf et al., Joint Bilateral Upsampling, 2007):

    J[x] = sum_y k(x, y) U[y] / sum_y k(x, y),   k = exp(-|x - y|^2 / 2 s^2) exp(-|I[x] - C[y]|^2 / 2 g^2)

over the 3 x 3 samples y around x, with U the map, C the mean colour of the square of pixels that a sample stands for,
I the image, s the spread in samples and g the tolerated difference of colour. All pixels of a square look at the same
samples: where pixels side by side looked at different ones, masks were full of specks.

The code runs on numpy arrays and torch tensors alike. Shapes: P parts, h x h the map, S x S the fitted image, G x G the
result.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

from slime_was.interpolation import is_numpy, library, like
from slime_was.masks import best

ArrayT = TypeVar("ArrayT", bound=Any)

SPREAD = 0.7  # standard deviation s, in samples of the map
FINEST = 4  # pixels of the result for each sample of the map, at most: cost grows with its square
# The largest exponent of a difference in colour: a pixel unlike all samples takes their mean by distance alone,
# because weights of 0 would leave it without a mean.
_UNLIKE = 60.0


def joint_bilateral(scores_Phh: ArrayT, image_3SS: ArrayT, tolerance: float) -> ArrayT:
    """Return scores (P, G, G), G <= S, from scores (P, h, h) and the image (3, S, S) in [-1, 1], both of one kind.

    ``tolerance``: the standard deviation g of a colour's difference, for channels of 0..1. S must be a multiple of h;
    G is the largest multiple of h, up to FINEST * h, that divides S.
    """
    size, samples = image_3SS.shape[-1], scores_Phh.shape[-1]
    step = next(each for each in range(FINEST, 0, -1) if size % (each * samples) == 0)
    # Scaled so that the square of a difference is the exponent of its weight.
    guide_3GG = reduced(image_3SS, step * samples) * (1 / (2 * 2**0.5 * tolerance))
    # Pixels of one place in their squares, of T = step * step places, lie together: N = h * h, one for each sample.
    guide_3TN = _by_place(guide_3GG, step)
    colours_3hh = guide_3TN.mean(1).reshape(3, samples, samples)
    seen_Xhh = _beyond(library(scores_Phh).concatenate([colours_3hh, scores_Phh]))
    place_s = ((np.arange(step) + 0.5) / step - 0.5).astype(np.float32)  # the distance from the sample's centre
    total_PTN: Any = 0.0
    weights_TN: Any = 0.0
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            sample_XN = seen_Xhh[:, 1 + down :, 1 + right :][:, :samples, :samples].reshape(len(seen_Xhh), -1)
            apart_3TN = guide_3TN - sample_XN[:3, None]
            apart_3TN *= apart_3TN
            near_T1 = ((down - place_s)[:, None] ** 2 + (right - place_s) ** 2).reshape(-1, 1) / (2 * SPREAD**2)
            weight_TN = apart_3TN.sum(0).clip(max=_UNLIKE) + like(near_T1, guide_3GG)
            weight_TN = library(weight_TN).exp(-weight_TN)
            total_PTN += weight_TN * sample_XN[3:, None]
            weights_TN += weight_TN
    finer_PGG: ArrayT = _side_by_side(total_PTN / weights_TN, samples)
    _remove_specks(finer_PGG)
    return finer_PGG


def reduced(maps_XSS: ArrayT, side: int) -> ArrayT:
    """Return maps (X, S, S) reduced to (X, side, side), each pixel the mean of a square; side divides S."""
    count, block = len(maps_XSS), maps_XSS.shape[-1] // side
    if block == 1:
        return maps_XSS
    squares: ArrayT = maps_XSS.reshape(count, side, block, side, block).mean(4).mean(2)
    return squares


def _beyond(maps_Xhh: ArrayT) -> ArrayT:
    """Return maps (X, h + 2, h + 2): with the outermost samples repeated beyond each edge."""
    samples = maps_Xhh.shape[-1]
    places: Any = np.arange(-1, samples + 1).clip(0, samples - 1)
    if not is_numpy(maps_Xhh):
        places = library(maps_Xhh).from_numpy(places).to(maps_Xhh.device)
    beyond_Xgg: ArrayT = maps_Xhh[:, places][:, :, places]
    return beyond_Xgg


def _by_place(maps_XGG: ArrayT, step: int) -> ArrayT:
    """Return (X, T, N): for each place in a square of step x step = T pixels, the pixels there of all N squares."""
    count, side = len(maps_XGG), maps_XGG.shape[-1]
    squares_Xhshs = maps_XGG.reshape(count, side // step, step, side // step, step)
    by_place: ArrayT = library(maps_XGG).moveaxis(squares_Xhshs, (2, 4), (1, 2)).reshape(count, step * step, -1)
    return by_place


def _side_by_side(maps_XTN: ArrayT, samples: int) -> ArrayT:
    """Return (X, G, G), the pixels in their places again: what `_by_place` was given."""
    count, step = len(maps_XTN), round(maps_XTN.shape[1] ** 0.5)
    squares_Xsshh = maps_XTN.reshape(count, step, step, samples, samples)
    side = step * samples
    in_place: ArrayT = library(maps_XTN).moveaxis(squares_Xsshh, (1, 2), (2, 4)).reshape(count, side, side)
    return in_place


def _remove_specks(scores_PGG: Any) -> None:
    """Give each pixel of a speck, one or two pixels of a part, the mean scores of its other neighbours, in place.

    Pixels touch along their sides. A speck is found by counting: a pixel's neighbours of the same part have, all
    together, at most one such neighbour, which is then the pixel itself.
    """
    part_GG = best(scores_PGG)
    last = part_GG.shape[-1] - 1
    if last < 2:  # Of so few pixels, two are no speck.
        return
    below_GG, beside_GG = part_GG[1:] == part_GG[:-1], part_GG[:, 1:] == part_GG[:, :-1]
    alike_GG = _summed(0 * part_GG + 1, below_GG, beside_GG)
    rows, columns = library(scores_PGG).where(_summed(alike_GG, below_GG, beside_GG) <= 1)
    total_PX, count_X = 0 * scores_PGG[:, rows, columns], 0 * rows
    for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        near = ((rows + down).clip(0, last), (columns + right).clip(0, last))
        # Beyond an edge, the pixel itself is found, which is no other neighbour.
        other_X = part_GG[near] != part_GG[rows, columns]
        total_PX += scores_PGG[:, near[0], near[1]] * other_X
        count_X += other_X
    scores_PGG[:, rows, columns] = total_PX / count_X


def _summed(counts_GG: Any, below_GG: Any, beside_GG: Any) -> Any:
    """Return for each pixel the sum of the counts of its neighbours of the same part."""
    sums_GG = 0 * counts_GG
    sums_GG[1:] += below_GG * counts_GG[:-1]
    sums_GG[:-1] += below_GG * counts_GG[1:]
    sums_GG[:, 1:] += beside_GG * counts_GG[:, :-1]
    sums_GG[:, :-1] += beside_GG * counts_GG[:, 1:]
    return sums_GG
