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
    both_Xgg = _padded(library(scores_Phw).concatenate([scores_PGG, guide_3GG]), REACH * step)
    smoothed_PGG: ArrayT = _smoothed(both_Xgg, parts, step, tolerance)
    return smoothed_PGG


def _smoothed(both_Xgg: ArrayT, parts: int, step: int, tolerance: float) -> ArrayT:
    """J (P, G, G), from scores and colours (P + 3, g, g) that reach beyond it on every side."""
    reach = REACH * step
    side = both_Xgg.shape[-1] - 2 * reach
    guide_3GG = both_Xgg[parts:, reach : reach + side, reach : reach + side]
    total_PGG, weights_GG = 0 * both_Xgg[:parts, :side, :side], 0 * guide_3GG[0]
    # Written over at every turn: new arrays would cost more than what is computed into them.
    apart_3GG, weight_GG, weighted_PGG = 0 * guide_3GG, 0 * guide_3GG[0], 0 * total_PGG
    lib = library(both_Xgg)
    for down in range(-REACH, REACH + 1):
        for right in range(-REACH, REACH + 1):
            top, left = reach + down * step, reach + right * step
            seen_XGG = both_Xgg[:, top : top + side, left : left + side]
            lib.subtract(seen_XGG[parts:], guide_3GG, out=apart_3GG)
            lib.multiply(apart_3GG, apart_3GG, out=apart_3GG)
            lib.sum(apart_3GG, 0, out=weight_GG)
            weight_GG *= -0.5 / tolerance**2
            weight_GG -= (down**2 + right**2) / (2 * SPREAD**2)
            lib.exp(weight_GG, out=weight_GG)
            lib.multiply(seen_XGG[:parts], weight_GG, out=weighted_PGG)
            total_PGG += weighted_PGG
            weights_GG += weight_GG
    smoothed_PGG: ArrayT = total_PGG / weights_GG
    return smoothed_PGG


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
    lib = library(maps_XGG)
    index = lib.asarray(places)
    padded: ArrayT
    if is_numpy(maps_XGG):
        # numpy leaves what was indexed lying column by column, and what is done with it would take five times as long.
        padded = lib.ascontiguousarray(maps_XGG[:, index][:, :, index])
    else:
        index = index.to(maps_XGG.device)
        padded = maps_XGG[:, index][:, :, index]
    return padded
