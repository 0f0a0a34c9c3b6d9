"""Exported models as something that segments: from pixels to masks as the server does it, without a server.

Shape suffixes: B crops, P parts, S image side, H, W image sides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

import slime_was
from slime_image import cropped, fit
from slime_optimize.evaluation import Data, Segments, confusions
from slime_optimize.metrics import report
from slime_was import Postprocess
from slime_was.tensors import ACCUMULATED, CROSS, LATENTS, PIXELS, POSTPROCESS, SELF

Array = npt.NDArray[np.float32]
Image = npt.NDArray[np.uint8]


class Network(Protocol):
    """An exported model that can be run."""

    outputs: tuple[str, ...]

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Inputs by name -> outputs by name."""


class Exported:
    """Both networks of a segmenter that weights with `weighting` and reads its channels in `channel_order`."""

    batch_size = 1

    def __init__(self, encoder: Network, unet: Network, postprocess: Postprocess, channel_order: str) -> None:
        self._encoder, self._unet, self._weighting, self._order = encoder, unet, postprocess, channel_order

    def masks(self, images_HW3: Sequence[Image], *, use_was: bool = True) -> list[Image]:
        """RGB uint8 images of any sizes -> their masks, uint8 (H,W)."""
        assert use_was, "a served segmenter always weights"
        return [self._mask(image) for image in images_HW3]

    def _mask(self, image_HW3: Image) -> Image:
        postprocess = self._weighting
        fitted_3SS = fit(image_HW3, postprocess.side, self._order)
        crops_B3SS = cropped(fitted_3SS, postprocess.crops, postprocess.crop_side)
        maps = self._unet({LATENTS: self._encoder({PIXELS: crops_B3SS})[LATENTS]})
        return mask_of(maps, fitted_3SS, image_HW3.shape[:2])


def mask_of(maps: Mapping[str, Array], fitted_3SS: Array, size: tuple[int, ...]) -> Image:
    """The maps of one image's crops to its mask of `size` (H,W)."""
    postprocess = Postprocess.from_vector(maps[POSTPROCESS][0])
    attended = maps[ACCUMULATED] if ACCUMULATED in maps else maps[SELF]
    scores_Phw = slime_was.scores(maps[CROSS], attended, postprocess)
    guided_PGG = slime_was.sharpened(scores_Phw, postprocess, fitted_3SS)
    mask_HW: Image = slime_was.segment(guided_PGG, size[0], size[1]).astype(np.uint8, copy=False)
    return mask_HW


def mean_iou(segments: Segments, data: Data) -> float:
    """The headline of optimize/evaluate.py, in points."""
    return report(confusions(segments, data), data.parts).mean
