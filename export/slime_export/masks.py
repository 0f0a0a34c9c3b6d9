"""Makes masks from a UNet's maps with the code that serves: for the proof of an export, and for trials of other code.

Needs no PyTorch. Shape suffixes: C crops, B batch, P parts, S image side, h x w the maps, N = h*w, H x W an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

import slime_was
from slime_repository.record import Mask
from slime_store import Entry
from slime_was import Postprocess
from slime_was.tensors import ACCUMULATED, CROSS, POSTPROCESS, SELF

Array = npt.NDArray[Any]


def of_segmenter(maps: Mapping[str, Array], entry: Entry) -> dict[str, Array]:
    """Return what a UNet of the segmenter alone would give, from a shared UNet's maps: POSTPROCESS, and its own parts.

    A shared UNet has slots for more parts than the segmenter; those that are taken come first.
    """
    parts, batch = len(entry.description["parts"]), len(maps[CROSS])
    own = {name: value[:, :parts] if name in (CROSS, ACCUMULATED) else value for name, value in maps.items()}
    return own | {POSTPROCESS: np.repeat(entry.postprocess[np.newaxis], batch, axis=0)}


def mask_of(maps: Mapping[str, Array], fitted_3SS: Array, size: tuple[int, ...]) -> Mask:
    """Return the mask, uint8 of `size` (H,W), that the maps of one image's crops give.

    maps: CROSS (C,P,h,w), SELF (C,N,N) or ACCUMULATED (C,P,h,w), POSTPROCESS (C,LENGTH).
    """
    postprocess = Postprocess.from_vector(maps[POSTPROCESS][0])
    attended = maps[ACCUMULATED] if ACCUMULATED in maps else maps[SELF]
    scores_Phw = slime_was.scores(maps[CROSS], attended, postprocess)
    guided_PGG = slime_was.sharpened(scores_Phw, postprocess, fitted_3SS)
    mask_HW: Mask = slime_was.segment(guided_PGG, size[0], size[1]).astype(np.uint8, copy=False)
    return mask_HW
