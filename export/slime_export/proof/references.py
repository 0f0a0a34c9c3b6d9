"""PyTorch's side of the comparison: what the unmodified backbone answers, kept as arrays so that it can leave memory.

The backbone is the one that training and evaluation use; nothing of the traced wrappers takes part.

Shape suffixes: B images (with C crops each), P parts, S image side, h x w the maps, N = h*w.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from slime_export.proof.difference import Difference, difference
from slime_image import fit
from slime_optimize.method.predict import Predictor
from slime_repository.record import Check, png
from slime_was.tensors import ACCUMULATED, CROSS, LATENTS, POSTPROCESS, SELF

Array = npt.NDArray[np.float32]
Image = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class References:
    """Images (H,W,3), fitted (B,3,S,S), their crops (B*C,3,S,S), PyTorch's tensors (B*C,…) by name, masks (H,W).

    own_error: of PyTorch's fp32 against float64 on the first image, by tensor; empty where it was not asked for.
    """

    images: Sequence[Image]
    fitted_B3SS: Array
    crops_B3SS: Array
    tensors: Mapping[str, Array]
    masks: Sequence[Image]
    own_error: Mapping[str, Difference]

    def first(self, images: int) -> References:
        """Of the first few images alone."""
        crops = images * len(self.crops_B3SS) // len(self.images)
        return replace(
            self,
            images=self.images[:images],
            fitted_B3SS=self.fitted_B3SS[:images],
            crops_B3SS=self.crops_B3SS[:crops],
            tensors={name: value[:crops] for name, value in self.tensors.items()},
            masks=self.masks[:images],
        )

    def check(self, agreement: float, training: bool) -> Check:
        """What has to be answered to the first image; whether that is the one it was learned from."""
        return Check(image=png(self.images[0]), mask_HW=self.masks[0], agreement=agreement, training_image=training)


def answered(predictor: Predictor, images: Sequence[Image], *, weighted: bool, own_error: bool) -> References:
    """Runs PyTorch on `images`, one after the other, and on the first once more in float64 where `own_error`."""
    fitted_B3SS = predictor.pixels(images)
    each = [_tensors(predictor, predictor.latents([image]), weighted) for image in images]
    pairs = zip(each, fitted_B3SS, [(image.shape[0], image.shape[1]) for image in images], strict=True)
    return References(
        images=images,
        fitted_B3SS=fitted_B3SS,
        crops_B3SS=predictor.crops(fitted_B3SS),
        tensors={name: np.concatenate([one.arrays[name] for one in each]) for name in each[0].arrays},
        masks=[predictor.finish(one.cross, one.was, fitted, size) for one, fitted, size in pairs],
        own_error=_own_error(predictor, images[0], each[0], weighted) if own_error else {},
    )


def random_images(generator: np.random.Generator, count: int, size: int) -> list[Image]:
    """Coloured clouds, uint8 (size, size, 3): coarse noise enlarged, because no image is white noise."""
    coarse = [generator.integers(0, 256, (side, side, 3), np.uint8) for side in generator.integers(4, 33, count)]
    fitted = [fit(each, size).transpose(1, 2, 0) for each in coarse]
    return [np.clip((each + 1) * 127.5, 0, 255).astype(np.uint8) for each in fitted]


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """One image: the tensors to compare with, and what masks are made from."""

    arrays: Mapping[str, npt.NDArray[Any]]
    cross: Tensor
    was: Tensor


def _tensors(predictor: Predictor, latents_B4hw: Tensor, weighted: bool) -> _Answer:
    # Two implementations: WAS never has an N x N map, and the averaged maps are looked at for themselves.
    cross_BPhw, was_BPhw = predictor.maps(latents_B4hw)
    found = {LATENTS: latents_B4hw, CROSS: cross_BPhw}
    found |= {ACCUMULATED: was_BPhw} if weighted else {SELF: predictor.full_maps(latents_B4hw)[1]}
    postprocess = predictor.segmenter.settings.postprocess(predictor.backbone.image_size).vector()
    arrays = {name: tensor.cpu().numpy() for name, tensor in found.items()}
    constant = {POSTPROCESS: np.repeat(postprocess[np.newaxis], len(latents_B4hw), axis=0)}
    return _Answer(arrays=arrays | constant, cross=cross_BPhw, was=was_BPhw)


def _own_error(predictor: Predictor, image: Image, fp32: _Answer, weighted: bool) -> dict[str, Difference]:
    """Latents from the same pixels, maps from the same latents."""
    names = (LATENTS, CROSS, ACCUMULATED if weighted else SELF)
    with _doubled(predictor) as exact:
        latents = exact.latents([image]).cpu().numpy()
        maps = _tensors(exact, torch.from_numpy(fp32.arrays[LATENTS]).to(exact.backbone.device).double(), weighted)
    return {name: difference(fp32.arrays[name], latents if name == LATENTS else maps.arrays[name]) for name in names}


@contextmanager
def _doubled(predictor: Predictor) -> Iterator[Predictor]:
    """The same weights as float64, in place: one copy of 866 M of them is enough. fp32 comes back as it was."""
    backbone = predictor.backbone
    models = (backbone.unet, backbone.encoder_model(predictor.segmenter.settings.encoder))
    try:
        for model in models:
            model.double()
        yield Predictor(predictor.segmenter, backbone)
    finally:
        for model in models:
            model.float()
