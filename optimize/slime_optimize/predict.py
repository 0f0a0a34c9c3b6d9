"""From images to masks in PyTorch: the one place where PyTorch computes them.

fit -> VAE -> noise at t_test -> one conditional UNet pass -> maps -> slime_was, as the server does.

Shape suffixes: B batch, P parts, h, w map sides, N = h*w, H, W image sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from slime_image import fit
from slime_optimize.attention import was_maps
from slime_optimize.backbone import Backbone, load_backbone
from slime_optimize.errors import BackboneError
from slime_optimize.segmenter import Segmenter
from slime_was import drop_absent, segment

# Images per pass: eight of 128 x 128, as the server's largest batch, and one of SD's 512 x 512.
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
        self.segmenter = segmenter
        self.backbone = backbone
        self._text_1TD = segmenter.text_embedding.to(backbone.device, backbone.dtype)
        self._noise_14hw = segmenter.noise.to(backbone.device, backbone.dtype)

    @property
    def batch_size(self) -> int:
        """How many images go through the networks together."""
        return max(1, min(_MOST, _PIXELS_AT_ONCE // self.backbone.image_size**2))

    def latents(self, images_HW3: Sequence[npt.NDArray[np.uint8]]) -> Tensor:
        """RGB uint8 images of any sizes -> clean latents (B,4,h,w)."""
        pixels = np.stack([fit(image, self.backbone.image_size) for image in images_HW3])
        return self.backbone.encode(torch.from_numpy(pixels))

    def maps(self, latents_B4hw: Tensor) -> tuple[Tensor, Tensor]:
        """Clean latents -> cross maps and WAS maps, each (B,P,h,w) float32, before any part is dropped."""
        settings = self.segmenter.settings
        timestep = torch.tensor(settings.t_test, device=self.backbone.device)
        noised = self.backbone.add_noise(latents_B4hw, self._noise_14hw, timestep)
        parts = len(self.segmenter.parts)
        with torch.no_grad():
            maps = was_maps(
                self.backbone.unet,
                noised,
                timestep,
                self._text_1TD,
                parts,
                settings.layers,
                over_parts=settings.over_parts,
            )
        return maps.cross_BPhw.float(), maps.was_BPhw.float()

    def scores(self, images_HW3: Sequence[npt.NDArray[np.uint8]], *, use_was: bool = True) -> Tensor:
        """RGB uint8 images of any sizes -> (B,P,h,w) float32: WAS maps, absent parts 0.

        With use_was false, the cross maps alone.
        """
        size = self.batch_size
        batches = [images_HW3[i : i + size] for i in range(0, len(images_HW3), size)]
        return torch.cat([self._scores(batch, use_was) for batch in batches])

    def _scores(self, images_HW3: Sequence[npt.NDArray[np.uint8]], use_was: bool) -> Tensor:
        cross_BPhw, was_BPhw = self.maps(self.latents(images_HW3))
        weighted = was_BPhw if use_was else cross_BPhw
        kept: Tensor = drop_absent(weighted.flatten(2), cross_BPhw.flatten(2), self.segmenter.settings.threshold)
        return kept.reshape(cross_BPhw.shape)

    def mask(self, image_HW3: npt.NDArray[np.uint8], *, use_was: bool = True) -> npt.NDArray[np.uint8]:
        """One RGB uint8 image -> uint8 (H,W) of part indices, at the image's own size."""
        return self.masks([image_HW3], use_was=use_was)[0]

    def masks(
        self, images_HW3: Sequence[npt.NDArray[np.uint8]], *, use_was: bool = True
    ) -> list[npt.NDArray[np.uint8]]:
        """As `mask`, for several images at once."""
        scores_BPhw = self.scores(images_HW3, use_was=use_was)
        pairs = zip(scores_BPhw, images_HW3, strict=True)
        return [segment(each, image.shape[0], image.shape[1]).cpu().numpy() for each, image in pairs]


def load_predictor(folder: Path, device: str | torch.device = "cpu", backbone: str | None = None) -> Predictor:
    """The segmenter in `folder`, on the backbone it names, or on `backbone` (of the same content)."""
    segmenter = Segmenter.load(folder)
    return Predictor(segmenter, load_backbone(backbone or segmenter.backbone_id, device))
