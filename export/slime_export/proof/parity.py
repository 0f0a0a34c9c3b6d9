"""Compares exported models with PyTorch: the same images in ONNX Runtime (or an engine) and through Predictor.

Each model is compared on the same input, and the masks end to end, from pixels on.

Shape suffixes: B batch, C crops, P parts, S image side, h x w the maps, N = h*w.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from slime_export.proof.difference import Difference as Difference
from slime_export.proof.difference import difference as difference
from slime_export.proof.exported import Network, mask_of
from slime_export.proof.references import References, answered
from slime_export.proof.references import random_images as random_images
from slime_export.proof.report import Comparison, Report
from slime_export.proof.session import OnnxModel as OnnxModel
from slime_optimize.method.prediction import Predictor
from slime_was.tensors import ACCUMULATED, LATENTS, PIXELS

Array = npt.NDArray[np.float32]
Image = npt.NDArray[np.uint8]
BATCHES = (1, 2, 3)
# Larger images take PyTorch seconds each, and gigabytes.
FEWER_BATCHES, MANY_PIXELS = (1, 2), 256 * 256


def batches(image_size: int) -> tuple[int, ...]:
    """The batches that models of images of this side are compared at."""
    return FEWER_BATCHES if image_size**2 > MANY_PIXELS else BATCHES


def trial_images(predictor: Predictor, *given: Image | None, seed: int = 0) -> list[Image]:
    """Images for the largest batch: those that are given, and fresh ones drawn from `seed`."""
    size = predictor.backbone.image_size
    drawn = random_images(np.random.default_rng(seed), max(batches(size)), size)
    first = [image for image in given if image is not None][: len(drawn)]
    return [*first, *drawn[len(first) :]]


def compare(
    predictor: Predictor, encoder: Network, unet: Network, *, image: Image | None = None, seed: int = 0
) -> Report:
    """Both models against `predictor`, on images drawn from `seed`; `image` takes the place of the first."""
    images = trial_images(predictor, image, seed=seed)
    references = answered(predictor, images, weighted=ACCUMULATED in unet.outputs, own_error=False)
    return Report(comparisons=measured(references, unet, encoded(references, encoder)))


def encoded(references: References, encoder: Network) -> dict[int, Array]:
    """The encoder's latents at each batch."""
    sizes = batches(references.fitted_B3SS.shape[-1])
    return {batch: encoder({PIXELS: references.first(batch).crops_B3SS})[LATENTS] for batch in sizes}


def measured(
    references: References, unet: Network, latents: Mapping[int, Array] | None = None
) -> tuple[Comparison, ...]:
    """The UNet at each batch, on PyTorch's latents; masks from `latents` of the exported encoder, where given."""
    sizes = batches(references.fitted_B3SS.shape[-1])
    return tuple(
        _measured(references.first(batch), unet, None if latents is None else latents[batch]) for batch in sizes
    )


def _measured(references: References, unet: Network, latents_B4hw: Array | None) -> Comparison:
    expected = references.tensors
    got = unet({LATENTS: expected[LATENTS]})
    served = got
    if latents_B4hw is not None:
        served, got = unet({LATENTS: latents_B4hw}), got | {LATENTS: latents_B4hw}
    masks = zip(_masks(references, served), references.masks, strict=True)
    return Comparison(
        batch=len(references.images),
        tensors={name: difference(got[name], expected[name]) for name in expected if name in got},
        mask_agreement=float(np.mean([(one == other).mean() for one, other in masks])),
    )


def _masks(references: References, maps: Mapping[str, Array]) -> list[Image]:
    crops = len(references.crops_B3SS) // len(references.images)
    pairs = enumerate(zip(references.fitted_B3SS, references.images, strict=True))
    return [
        mask_of(
            {name: value[turn * crops : (turn + 1) * crops] for name, value in maps.items()}, fitted, image.shape[:2]
        )
        for turn, (fitted, image) in pairs
    ]
