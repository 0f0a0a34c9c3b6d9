"""Compares exported models with PyTorch: the same images in ONNX Runtime (or an engine) and through Predictor.

Each model is compared on the same input, and the masks end to end, from pixels on. For the mean IoU the exported models
segment annotated images as the server does, without a server.

Shape suffixes: B batch, C crops, P parts, S image side, h x w the maps, N = h*w, H x W an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from slime_export.graph.runtimes import Network
from slime_export.masks import mask_of
from slime_export.proof.references import References
from slime_export.proof.report import Comparison, difference
from slime_image import cropped, fit
from slime_optimize.evaluation import Data, Segments, confusions
from slime_optimize.method.prediction import Predictor
from slime_optimize.metrics import report
from slime_was import Postprocess
from slime_was.options import LENGTH
from slime_was.tensors import LATENTS, PIXELS, POSTPROCESS

Array = npt.NDArray[np.float32]
Image = npt.NDArray[np.uint8]
BATCHES = (1, 2, 3)
# Larger images take PyTorch seconds each, and gigabytes.
FEWER_BATCHES, MANY_PIXELS = (1, 2), 256 * 256


def batches(image_size: int) -> tuple[int, ...]:
    """Return the batches that models of images of this side are compared at."""
    return FEWER_BATCHES if image_size**2 > MANY_PIXELS else BATCHES


def trial_images(predictor: Predictor, *given: Image | None, seed: int = 0) -> list[Image]:
    """Return images for the largest batch: those that are given, and fresh ones drawn from `seed`."""
    size = predictor.backbone.image_size
    drawn = random_images(np.random.default_rng(seed), max(batches(size)), size)
    first = [image for image in given if image is not None][: len(drawn)]
    return [*first, *drawn[len(first) :]]


def random_images(generator: np.random.Generator, count: int, size: int) -> list[Image]:
    """Return coloured clouds, uint8 (size, size, 3): coarse noise enlarged, because no image is white noise."""
    coarse = [generator.integers(0, 256, (side, side, 3), np.uint8) for side in generator.integers(4, 33, count)]
    fitted = [fit(each, size).transpose(1, 2, 0) for each in coarse]
    return [np.clip((each + 1) * 127.5, 0, 255).astype(np.uint8) for each in fitted]


def encoded(references: References, encoder: Network) -> dict[int, Array]:
    """Return the encoder's latents at each batch."""
    sizes = batches(references.fitted_B3SS.shape[-1])
    return {batch: encoder({PIXELS: references.first(batch).crops_B3SS})[LATENTS] for batch in sizes}


def measured(
    references: References, unet: Network, latents: Mapping[int, Array] | None = None
) -> tuple[Comparison, ...]:
    """Compare the UNet at each batch, on PyTorch's latents; masks are made from `latents` of the exported encoder."""
    found = []
    for batch in batches(references.fitted_B3SS.shape[-1]):
        these = references.first(batch)
        expected = these.tensors
        got = served = unet({LATENTS: expected[LATENTS]})
        if latents is not None:
            served, got = unet({LATENTS: latents[batch]}), got | {LATENTS: latents[batch]}
        got = got | {POSTPROCESS: got[POSTPROCESS][:, :LENGTH]}  # without the segmenter's name, which PyTorch has not
        masks = zip(_masks(these, served), these.masks, strict=True)
        comparison = Comparison(
            batch=batch,
            tensors={name: difference(got[name], expected[name]) for name in expected if name in got},
            mask_agreement=float(np.mean([(one == other).mean() for one, other in masks])),
        )
        found.append(comparison)
    return tuple(found)


def _masks(references: References, maps: Mapping[str, Array]) -> list[Image]:
    crops = len(references.crops_B3SS) // len(references.images)
    masks = []
    for index, (fitted_3SS, image) in enumerate(zip(references.fitted_B3SS, references.images, strict=True)):
        of_image = {name: value[index * crops : (index + 1) * crops] for name, value in maps.items()}
        masks.append(mask_of(of_image, fitted_3SS, image.shape[:2]))
    return masks


class ExportedSegmenter:
    """A segmenter's two exported networks as one thing that segments, with its post-processing and channel order."""

    batch_size = 1

    def __init__(self, encoder: Network, unet: Network, postprocess: Postprocess, channel_order: str) -> None:
        self._encoder, self._unet, self._postprocess, self._order = encoder, unet, postprocess, channel_order

    def masks(self, images_HW3: Sequence[Image], *, use_was: bool = True) -> list[Image]:
        """RGB uint8 images of any sizes -> their masks, uint8 (H,W)."""
        assert use_was, "a served segmenter always uses WAS maps"
        postprocess, masks = self._postprocess, []
        for image_HW3 in images_HW3:
            fitted_3SS = fit(image_HW3, postprocess.side, self._order)
            crops_B3SS = cropped(fitted_3SS, postprocess.crops, postprocess.crop_side)
            maps = self._unet({LATENTS: self._encoder({PIXELS: crops_B3SS})[LATENTS]})
            masks.append(mask_of(maps, fitted_3SS, image_HW3.shape[:2]))
        return masks


def mean_iou(segments: Segments, data: Data) -> float:
    """Return the mean IoU over the parts, in points, which optimize/evaluate.py prints first."""
    return report(confusions(segments, data), data.parts).mean
