"""PyTorch's side of the comparison: what the unmodified backbone answers, kept as arrays so that it can leave memory.

The backbone is the one that training and evaluation use; nothing of the traced wrappers takes part.

Shape suffixes: B images (with C crops each), P parts, S image side, h x w the maps, N = h*w.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from slime_export.proof.report import Difference, difference
from slime_optimize.method.prediction import Predictor
from slime_repository.record import Check, png
from slime_was.tensors import ACCUMULATED, CROSS, LATENTS, POSTPROCESS, SELF

Array = npt.NDArray[np.float32]
Image = npt.NDArray[np.uint8]
# Beside the tensors' names: the WAS maps that an image's mask is made from.
_WAS = "WAS"


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
        """Return the references of the first few images alone."""
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
        """Return what a server has to answer to the first image; `training`: whether the segmenter learned from it."""
        return Check(image=png(self.images[0]), mask_HW=self.masks[0], agreement=agreement, training_image=training)


def answered(predictor: Predictor, images: Sequence[Image], *, weighted: bool, own_error: bool) -> References:
    """Run PyTorch on `images`, one after the other, and on the first once more in float64 where `own_error`."""
    fitted_B3SS = predictor.pixels(images)
    each = [_tensors(predictor, predictor.latents([image]), weighted) for image in images]
    arrays = [{name: tensor.cpu().numpy() for name, tensor in one.items()} for one in each]
    postprocess = predictor.segmenter.settings.postprocess(predictor.backbone.image_size).vector()
    tensors = {name: np.concatenate([one[name] for one in arrays]) for name in arrays[0] if name != _WAS}
    masks = [
        predictor.finish(one[CROSS], one[_WAS], fitted, (image.shape[0], image.shape[1]))
        for one, fitted, image in zip(each, fitted_B3SS, images, strict=True)
    ]
    return References(
        images=images,
        fitted_B3SS=fitted_B3SS,
        crops_B3SS=predictor.crops(fitted_B3SS),
        tensors=tensors | {POSTPROCESS: np.repeat(postprocess[np.newaxis], len(tensors[LATENTS]), axis=0)},
        masks=masks,
        own_error=_own_error(predictor, images[0], arrays[0], weighted) if own_error else {},
    )


def _tensors(predictor: Predictor, latents_B4hw: Tensor, weighted: bool) -> dict[str, Tensor]:
    """Return the tensors of one image by name, and under _WAS what its mask is made from."""
    # Two implementations: WAS never has an N x N map, and the averaged maps are looked at for themselves.
    cross_BPhw, was_BPhw = predictor.maps(latents_B4hw)
    read = {ACCUMULATED: was_BPhw} if weighted else {SELF: predictor.full_maps(latents_B4hw)[1]}
    return {LATENTS: latents_B4hw, CROSS: cross_BPhw, **read, _WAS: was_BPhw}


def _own_error(
    predictor: Predictor, image: Image, fp32: Mapping[str, npt.NDArray[Any]], weighted: bool
) -> dict[str, Difference]:
    """Return how far fp32 is from float64: latents from the same pixels, maps from the same latents.

    The same weights are converted, in place: one copy of 866 M of them is enough. fp32 comes back as it was.
    """
    names, backbone = (CROSS, ACCUMULATED if weighted else SELF), predictor.backbone
    models = (backbone.unet, backbone.encoder_model(predictor.segmenter.settings.encoder))
    try:
        for model in models:
            model.double()
        exact = Predictor(predictor.segmenter, backbone)
        latents = exact.latents([image]).cpu().numpy()
        maps = _tensors(exact, torch.from_numpy(fp32[LATENTS]).to(backbone.device).double(), weighted)
    finally:
        for model in models:
            model.float()
    found = {LATENTS: difference(fp32[LATENTS], latents)}
    return found | {name: difference(fp32[name], maps[name].cpu().numpy()) for name in names}
