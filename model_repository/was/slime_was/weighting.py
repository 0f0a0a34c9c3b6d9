"""Turns attention maps into the scores that a mask is the argmax of: WAS (eq. 6) and what may follow it.

The same code runs on numpy arrays (the server) and on torch tensors (training, evaluation), so both give the
same scores. It knows nothing of images, models or files, and imports numpy alone.

Shapes: B crops of one image (1 unless it is segmented in patches), P parts (background first), h x w the map,
N = h*w its pixels.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

from slime_was.guided import joint_bilateral, reduced
from slime_was.interpolation import enlarge, extremes, library, lowest_highest
from slime_was.options import Postprocess

ArrayT = TypeVar("ArrayT", bound=Any)


def accumulate(cross_PN: ArrayT, self_NN: ArrayT) -> ArrayT:
    """Return weighted accumulated self-attention, eq. 6: ``WAS[p, q] = sum_k self[q, k] * cross[p, k]``.

    cross_PN: (..., P, N) float, each part's cross-attention. self_NN: (..., N, N) float, row q is what pixel q
    attends to. Leading dimensions broadcast. Returns (..., P, N) of the same kind and dtype.
    """
    was_PN: ArrayT = cross_PN @ self_NN.swapaxes(-1, -2)
    return was_PN


def scores(cross_BPhw: ArrayT, attended: ArrayT, postprocess: Postprocess) -> ArrayT:
    """Return the scores of one image from the maps of its crops; the mask is their argmax, once sharpened and enlarged.

    cross_BPhw: (B, P, h, w). attended: self-attention (B, N, N) with N = h*w, or (B, P, h, w), what a UNet has
    already accumulated from it. Returns (P, h, w), or merged patches, as `finished` does. Raises ValueError where the
    shapes do not belong together.
    """
    batch, _, height, width = cross_BPhw.shape
    square = (batch, height * width, height * width)
    if tuple(attended.shape) == square:
        attended = _accumulated(cross_BPhw, attended, postprocess)
    elif attended.shape != cross_BPhw.shape:
        raise ValueError(
            f"maps: got cross-attention {tuple(cross_BPhw.shape)} with {tuple(attended.shape)}, expected "
            f"self-attention {square}, or accumulated maps of the cross-attention's own shape"
        )
    finished_Phw: ArrayT = finished(cross_BPhw, attended, postprocess)
    return finished_Phw


def _accumulated(cross_BPhw: ArrayT, self_BNN: ArrayT, postprocess: Postprocess) -> ArrayT:
    flat_BPN = prepared(cross_BPhw, postprocess).reshape(*cross_BPhw.shape[:2], -1)
    was_BPhw: ArrayT = accumulate(flat_BPN, self_BNN).reshape(cross_BPhw.shape)
    return was_BPhw


def prepared(cross_BPhw: ArrayT, postprocess: Postprocess) -> ArrayT:
    """Return the cross maps as eq. 6 takes them: unchanged, or with the first kept part suppressed under its mean."""
    if not postprocess.suppress_first_part:
        return cross_BPhw
    kept_BP = _kept(cross_BPhw, postprocess)
    first_BP = kept_BP & (library(kept_BP).cumsum(_whole(kept_BP), 1) == 1)
    above_BPhw = cross_BPhw > cross_BPhw.mean((-2, -1))[..., None, None]
    values_BPhw: ArrayT = cross_BPhw * (above_BPhw | ~first_BP[..., None, None])
    return values_BPhw


def finished(cross_BPhw: ArrayT, was_BPhw: ArrayT, postprocess: Postprocess) -> ArrayT:
    """Return WAS maps rescaled, absent parts at 0, and patches merged.

    Returns (P, h, w) of a whole image; of patches (P, S, S), or, where they will be sharpened, (P, m, m), about as
    coarse as the maps of the patches, because `sharpened` reaches as far as samples lie apart.
    """
    expected = len(postprocess.crops)
    if len(cross_BPhw) != expected:
        raise ValueError(f"maps: got {len(cross_BPhw)} crops, expected {expected}, as the segmenter's patches say")
    kept_BP11 = _kept(cross_BPhw, postprocess)[..., None, None]
    if postprocess.rescale:
        was_BPhw = _rescaled(was_BPhw, cross_BPhw, postprocess.crop_side)
    # Nothing is multiplied where nothing can be dropped: the maps are large.
    scores_BPhw = was_BPhw if postprocess.threshold <= 0 else was_BPhw * kept_BP11
    scores_Phw: ArrayT = scores_BPhw[0] if expected == 1 else _merged(scores_BPhw, kept_BP11, postprocess)
    return scores_Phw


def sharpened(scores_Phw: ArrayT, postprocess: Postprocess, image_3SS: ArrayT | None) -> ArrayT:
    """Return scores whose edges follow those of the fitted image (3, S, S) in [-1, 1], if `edge_tolerance` is above 0.

    Returns (P, G, G), G at most S, or the scores themselves. Raises ValueError where the image is wanted and None.
    """
    if postprocess.edge_tolerance <= 0:
        return scores_Phw
    if image_3SS is None:
        raise ValueError("scores: got no image, expected the fitted image, which guides this segmenter's upsampling")
    guided_PGG: ArrayT = joint_bilateral(scores_Phw, image_3SS, postprocess.edge_tolerance)
    return guided_PGG


def _kept(cross_BPhw: ArrayT, postprocess: Postprocess) -> Any:
    """Return (B, P) bool: parts whose cross map reaches the threshold, and the background unless it may be dropped."""
    kept_BP = (cross_BPhw >= float(postprocess.threshold)).any(-1).any(-1)
    if not postprocess.drop_background:
        kept_BP[:, 0] = True
    return kept_BP


def _rescaled(was_BPhw: ArrayT, cross_BPhw: ArrayT, side: int) -> ArrayT:
    """Return each map changed so that, enlarged to side x side, it spans exactly its cross map's [min, max].

    An affine map commutes with the enlargement, so it is applied before.
    """
    low, high = extremes(was_BPhw, side, side)
    cross_low, cross_high = lowest_highest(cross_BPhw)
    steepness = (high - low) / _positive(cross_high - cross_low)
    # A flat map has no span; the published code divides by 1e-7 instead.
    rescaled_BPhw: ArrayT = (was_BPhw - low) / _positive(steepness) + cross_low
    return rescaled_BPhw


def _positive(spans: ArrayT) -> ArrayT:
    replaced: ArrayT = library(spans).where(spans > 0, spans, 0 * spans + 1e-7)
    return replaced


def _merged(scores_BPhw: ArrayT, kept_BP11: ArrayT, postprocess: Postprocess) -> ArrayT:
    """Return the crops put back in their places: each part is the mean over the crops that kept it."""
    side = postprocess.crop_side
    parts = scores_BPhw.shape[1]
    total_PSS = _zeros(scores_BPhw, (parts, postprocess.side, postprocess.side))
    count_PSS = _zeros(scores_BPhw, (parts, postprocess.side, postprocess.side))
    for scores_Phw, kept_P11, (top, left) in zip(scores_BPhw, kept_BP11, postprocess.crops, strict=True):
        total_PSS[:, top : top + side, left : left + side] += enlarge(scores_Phw, side, side) * kept_P11
        count_PSS[:, top : top + side, left : left + side] += kept_P11
    merged_PSS: ArrayT = total_PSS / (count_PSS + 1e-7)
    if postprocess.edge_tolerance <= 0:
        return merged_PSS
    # As wide as a sample of a crop's map, or the next wider that divides S.
    sample = -(-side // scores_BPhw.shape[-1])
    square = next(each for each in range(sample, postprocess.side + 1) if postprocess.side % each == 0)
    return reduced(merged_PSS, postprocess.side // square)


def _zeros(example: ArrayT, shape: tuple[int, ...]) -> ArrayT:
    zeros: Any = example.new_zeros(shape) if hasattr(example, "new_zeros") else np.zeros(shape, example.dtype)
    filled: ArrayT = zeros
    return filled


def _whole(flags: Any) -> Any:
    """Return flags as whole numbers, because numpy and torch differ in what they let be summed."""
    return flags.astype(np.int32) if hasattr(flags, "astype") else flags.int()
