"""Enlarges scores so that their edges follow the image's: joint bilateral upsampling.

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
# One of every two opposite neighbours, as (rows, columns).
_HALF = [(down, right) for down in range(REACH + 1) for right in range(-REACH, REACH + 1) if (down, right) > (0, 0)]
FINEST = 4  # pixels of the result for each sample of the map, at most: cost grows with its square


def joint_bilateral(scores_Phw: ArrayT, image_3SS: ArrayT, tolerance: float) -> ArrayT:
    """Return scores (P, G, G), G <= S, from scores (P, h, w) and the image (3, S, S) in [-1, 1], both of one kind.

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
    """Return J (P, G, G) from scores and colours (P + 3, g, g), which reach beyond it on every side.

    Rows lie end to end, so that a neighbour is `apart` places further on and every operation runs over one long line.
    What crosses from row to row ends in columns that are cut off. As k(x, y) = k(y, x), one weight serves both pixels.
    """
    reach, wide = REACH * step, both_Xgg.shape[-1]
    side = wide - 2 * reach
    first, last = reach * (wide + 1), reach * (wide + 1) + (side - 1) * wide + side
    both_XL = both_Xgg.reshape(both_Xgg.shape[0], wide * wide)
    scores_PL, guide_3L = both_XL[:parts], both_XL[parts:]
    total_PGg = 0 * both_Xgg[:parts, :side]
    weights_Gg = 0 * total_PGg[0] + 1
    total_PL, weights_L = (each.reshape(*each.shape[:-2], side * wide) for each in (total_PGg, weights_Gg))
    total_PL, weights_L = total_PL[:, : last - first], weights_L[: last - first]
    total_PL += scores_PL[:, first:last]
    # Reused in every turn of the loop, because new arrays would cost more than what is computed into them.
    apart_3L, weighted_PL = 0 * guide_3L, 0 * total_PL
    lib = library(both_Xgg)
    for down, right in _HALF:
        apart = step * (down * wide + right)
        weight_L = apart_3L[:, : last - first + apart]
        lib.subtract(guide_3L[:, first : last + apart], guide_3L[:, first - apart : last], out=weight_L)
        weight_L = _likeness(weight_L, (down**2 + right**2) / (2 * SPREAD**2), tolerance)
        for away, own_L in ((apart, weight_L[apart:]), (-apart, weight_L[: last - first])):
            lib.multiply(scores_PL[:, first + away : last + away], own_L, out=weighted_PL)
            total_PL += weighted_PL
            weights_L += own_L
    smoothed_PGG: ArrayT = (total_PGg / weights_Gg)[..., :side]
    return smoothed_PGG


def _likeness(apart_3L: ArrayT, distance: float, tolerance: float) -> ArrayT:
    """Return exp(-|a|^2 / 2 g^2 - distance), written over the first of the three lines."""
    apart_3L *= apart_3L
    weight_L: ArrayT = apart_3L[0]
    weight_L += apart_3L[1]
    weight_L += apart_3L[2]
    weight_L *= -0.5 / tolerance**2
    weight_L -= distance
    library(weight_L).exp(weight_L, out=weight_L)
    return weight_L


def _guide_side(side: int, map_side: int) -> int:
    return next(each for each in range(min(side, FINEST * map_side), 0, -1) if side % each == 0)


def _reduced(image_3SS: ArrayT, side: int) -> ArrayT:
    """Return the image reduced to side x side, each pixel the mean of a square."""
    block = image_3SS.shape[-1] // side
    if block == 1:
        return image_3SS
    squares: ArrayT = image_3SS.reshape(3, side, block, side, block).mean(4).mean(2)
    return squares


def _padded(maps_XGG: ArrayT, width: int) -> ArrayT:
    """Return the maps with their outermost values repeated beyond each edge."""
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
