"""From images to masks in PyTorch: the one place where PyTorch computes them.

fit -> VAE -> noise at t_test -> one conditional UNet pass (or several) -> maps -> slime_was, as the server does.

Shape suffixes: B batch, R draws of noise, P parts, h, w map sides, N = h*w, H, W image sides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from slime_image import cropped, fit
from slime_optimize.backbone import Backbone, load_backbone
from slime_optimize.errors import BackboneError
from slime_optimize.method.attention import attend, attention_maps, mean
from slime_optimize.method.passes import Pass, accumulated, passes
from slime_optimize.segmenter import Segmenter
from slime_was import finished, segment, sharpened

# Images per pass: eight of 128 x 128, as the server's largest batch, and one of SD's 512 x 512.
Result = TypeVar("Result")

_MOST = 8
_PIXELS_AT_ONCE = 8 * 128 * 128


class Predictor:
    """A segmenter on its backbone. Raises BackboneError when the two do not belong together."""

    def __init__(self, segmenter: Segmenter, backbone: Backbone) -> None:
        if segmenter.backbone_hash != backbone.hash:
            raise BackboneError(
                f"backbone {backbone.id}: its content is {backbone.hash[:12]}, the segmenter was made with "
                f"{segmenter.backbone_hash[:12]} ({segmenter.backbone_id}); load that one, or optimise again"
            )
        _check_encoder(segmenter, backbone)
        self.segmenter = segmenter
        self.backbone = backbone
        self._text_1TD = segmenter.text_embedding.to(backbone.device, backbone.dtype)
        self._noise_R4hw = segmenter.noise.to(backbone.device, backbone.dtype)
        self._weighting = segmenter.settings.postprocess(backbone.image_size)

    @property
    def batch_size(self) -> int:
        """How many images go through the networks together."""
        crops = len(self._weighting.crops)
        return max(1, min(_MOST, _PIXELS_AT_ONCE // self.backbone.image_size**2) // crops)

    def pixels(self, images_HW3: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        """RGB uint8 images of any sizes -> what the backbone reads, float32 (B,3,S,S), in its channel order."""
        order = self.segmenter.settings.channel_order
        return np.stack([fit(image, self.backbone.image_size, order) for image in images_HW3])

    def latents(self, images_HW3: Sequence[npt.NDArray[np.uint8]]) -> Tensor:
        """RGB uint8 images of any sizes -> clean latents of each one's crops, one after the other (B*crops,4,h,w)."""
        return self._encoded(self.pixels(images_HW3))

    def crops(self, pixels_B3SS: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The crops of each fitted image, one after the other, (B*crops,3,S,S)."""
        postprocess = self._weighting
        return np.concatenate([cropped(pixels, postprocess.crops, postprocess.crop_side) for pixels in pixels_B3SS])

    def _encoded(self, pixels_B3SS: npt.NDArray[np.float32]) -> Tensor:
        pixels = torch.from_numpy(self.crops(pixels_B3SS))
        return self.backbone.encode(pixels, encoder=self.segmenter.settings.encoder)

    def maps(self, latents_B4hw: Tensor) -> tuple[Tensor, Tensor]:
        """Clean latents -> cross maps and WAS maps, each (B,P,h,w) float32, before parts are dropped or rescaled."""
        with torch.no_grad():
            runs = [(each, self._run(attend, latents_B4hw, each)) for each in passes(self.segmenter.settings)]
            cross_BPhw, was_BPhw = accumulated(runs, self._weighting)
        return cross_BPhw.float(), was_BPhw.float()

    def full_maps(self, latents_B4hw: Tensor) -> tuple[Tensor, Tensor]:
        """Clean latents -> averaged cross maps (B,P,h,w) and self-attention maps (B,N,N), what is exported."""
        width = self.backbone.latent_size
        with torch.no_grad():
            runs = [(each, self._run(attention_maps, latents_B4hw, each)) for each in passes(self.segmenter.settings)]
        cross_BPhw = mean([each.turned(run.cross_BPhw) for each, run in runs])
        return cross_BPhw, mean([each.turned_self(run.self_BNN, width) for each, run in runs])

    def _run(self, maps_of: Callable[..., Result], latents_B4hw: Tensor, each: Pass) -> Result:
        """One pass through `attend` or `attention_maps`."""
        settings, backbone = self.segmenter.settings, self.backbone
        timestep = torch.tensor(each.timestep, device=backbone.device)
        noise_14hw = self._noise_R4hw[each.draw : each.draw + 1]
        return maps_of(
            backbone.unet,
            backbone.add_noise(each.turned(latents_B4hw), noise_14hw, timestep),
            timestep,
            self._text_1TD,
            len(self.segmenter.parts),
            settings.layers,
            over_parts=settings.over_parts,
        )

    def scores(self, images_HW3: Sequence[npt.NDArray[np.uint8]], *, use_was: bool = True) -> Tensor:
        """RGB uint8 images of any sizes -> WAS maps (B,P,h,w) float32, absent parts 0; (B,P,S,S) with patches.

        With use_was false, the cross maps in their place.
        """
        return torch.stack([scores_Phw for scores_Phw, _ in self._scored(images_HW3, use_was)])

    def _scored(
        self, images_HW3: Sequence[npt.NDArray[np.uint8]], use_was: bool
    ) -> Iterator[tuple[Tensor, npt.NDArray[np.float32]]]:
        """The scores of each image, beside the fitted image."""
        crops = len(self._weighting.crops)
        for start in range(0, len(images_HW3), self.batch_size):
            pixels_B3SS = self.pixels(images_HW3[start : start + self.batch_size])
            cross_BPhw, was_BPhw = self.maps(self._encoded(pixels_B3SS))
            maps = (cross_BPhw, was_BPhw if use_was else cross_BPhw)
            for cross, weighted, pixels in zip(*(each.split(crops) for each in maps), pixels_B3SS, strict=True):
                yield finished(cross, weighted, self._weighting), pixels

    def mask(self, image_HW3: npt.NDArray[np.uint8], *, use_was: bool = True) -> npt.NDArray[np.uint8]:
        """One RGB uint8 image -> uint8 (H,W) of part indices, at the image's own size."""
        return self.masks([image_HW3], use_was=use_was)[0]

    def masks(
        self, images_HW3: Sequence[npt.NDArray[np.uint8]], *, use_was: bool = True
    ) -> list[npt.NDArray[np.uint8]]:
        """As `mask`, for several images at once."""
        pairs = zip(self._scored(images_HW3, use_was), images_HW3, strict=True)
        return [self._mask(*scored, image.shape[0], image.shape[1]) for scored, image in pairs]

    def finish(
        self,
        cross_BPhw: Tensor,
        was_BPhw: Tensor,
        pixels_3SS: npt.NDArray[np.float32],
        size: tuple[int, int],
    ) -> npt.NDArray[np.uint8]:
        """What `maps` gave of one image's crops, and the fitted image -> the mask, uint8 of `size` (H,W)."""
        return self._mask(finished(cross_BPhw, was_BPhw, self._weighting), pixels_3SS, *size)

    def _mask(
        self, scores_Phw: Tensor, pixels_3SS: npt.NDArray[np.float32], height: int, width: int
    ) -> npt.NDArray[np.uint8]:
        guided = sharpened(scores_Phw, self._weighting, torch.from_numpy(pixels_3SS).to(scores_Phw.device))
        mask_HW: npt.NDArray[np.uint8] = segment(guided, height, width).cpu().numpy()
        return mask_HW


def load_predictor(
    folder: Path,
    device: str | torch.device = "cpu",
    backbone: str | None = None,
    tiny: str | None = None,
    changes: Sequence[str] = (),
) -> Predictor:
    """Load the segmenter in `folder`, on the backbone and tiny encoder that it names, or on these, of equal content.

    `changes` to test-time settings are "NAME=VALUE" each, as `Segmenter.at_test_time` takes them.
    """
    segmenter = Segmenter.load(folder).at_test_time(changes)
    tiny = tiny or segmenter.tiny_id
    return Predictor(segmenter, load_backbone(backbone or segmenter.backbone_id, device, tiny=tiny))


def _check_encoder(segmenter: Segmenter, backbone: Backbone) -> None:
    made, got = segmenter.tiny, backbone.tiny_name(segmenter.settings.encoder)
    if made and got and made.hash != got.hash:
        raise BackboneError(
            f"tiny encoder {got.id or backbone.id}: its content is {got.hash[:12]}, the segmenter was made with "
            f"{made.hash[:12]} ({made.id or segmenter.backbone_id}); load that one, or optimise again"
        )
