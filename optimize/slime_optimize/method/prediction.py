"""From images to masks in PyTorch: the one place where PyTorch computes them.

An image is fitted to the backbone's size and encoded; noise is added; one conditional UNet pass (or several, where a
segmenter averages timesteps, noise samples or mirrored images) gives maps; slime_was makes the mask, as on the server.

Shape suffixes: B batch, R noise samples, P parts, h, w map sides, N = h*w, H, W image sides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from slime_image import cropped, fit
from slime_optimize.backbone import Backbone, load_backbone
from slime_optimize.errors import BackboneError
from slime_optimize.method.attention import Attended, attend, attention_maps, mean
from slime_optimize.segmenter import Segmenter
from slime_optimize.settings import Settings
from slime_was import Postprocess, finished, prepared, segment, sharpened

Result = TypeVar("Result")
# Images in one batch: eight of 128 x 128, as the server's largest batch, and one of SD's 512 x 512.
_MAX_BATCH = 8
_PIXELS_AT_ONCE = 8 * 128 * 128


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One UNet pass: its timestep, which of the segmenter's noise samples, and whether the latents are mirrored."""

    timestep: int
    sample: int = 0
    mirrored: bool = False

    def oriented(self, maps_BXhw: Tensor) -> Tensor:
        """Return maps (B,X,h,w) mirrored if the pass is: to the pass's orientation, and back."""
        return maps_BXhw.flip(-1) if self.mirrored else maps_BXhw

    def oriented_self(self, self_BNN: Tensor, width: int) -> Tensor:
        """Return this pass's self-attention map [query, key] in the orientation of the image; maps are `width` wide."""
        if not self.mirrored:
            return self_BNN
        pixels = int(self_BNN.shape[1])  # while a graph is traced, sizes are tensors; only the batch may vary
        as_maps = self_BNN.reshape(-1, pixels // width, width, pixels // width, width)
        return as_maps.flip(2, 4).reshape(-1, pixels, pixels)


def accumulated(runs: Sequence[tuple[Pass, Attended]], postprocess: Postprocess) -> tuple[Tensor, Tensor]:
    """Return cross maps and WAS maps, (B,P,h,w) each, averaged over the passes, before parts are dropped or rescaled.

    Every pass accumulates the mean cross maps, which are known once all passes have run.
    """
    cross_BPhw = mean([each.oriented(run.cross_BPhw) for each, run in runs])
    values_BPhw = prepared(cross_BPhw, postprocess)
    return cross_BPhw, mean([each.oriented(run.accumulate(each.oriented(values_BPhw))) for each, run in runs])


def passes(settings: Settings) -> tuple[Pass, ...]:
    """Return the passes: every timestep with every noise sample, as the image is and, where wanted, mirrored."""
    return tuple(
        Pass(timestep=timestep, sample=sample, mirrored=mirrored)
        for timestep in (settings.t_test, *settings.extra_timesteps)
        for sample in range(settings.noise_samples)
        for mirrored in ((False, True) if settings.flip_average else (False,))
    )


class Predictor:
    """Segments images with a segmenter on its backbone; BackboneError when the two do not belong together."""

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
        self._postprocess = segmenter.settings.postprocess(backbone.image_size)

    @property
    def batch_size(self) -> int:
        """Number of images that go through the networks together."""
        crops = len(self._postprocess.crops)
        return max(1, min(_MAX_BATCH, _PIXELS_AT_ONCE // self.backbone.image_size**2) // crops)

    def pixels(self, images_HW3: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        """Return what the backbone reads of RGB uint8 images of any sizes, float32 (B,3,S,S), in its channel order."""
        order = self.segmenter.settings.channel_order
        return np.stack([fit(image, self.backbone.image_size, order) for image in images_HW3])

    def latents(self, images_HW3: Sequence[npt.NDArray[np.uint8]]) -> Tensor:
        """Return the clean latents (B*crops,4,h,w) of RGB uint8 images of any sizes, the crops of an image together."""
        return self._encoded(self.pixels(images_HW3))

    def crops(self, pixels_B3SS: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the crops of each fitted image, one after the other, (B*crops,3,S,S)."""
        postprocess = self._postprocess
        return np.concatenate([cropped(pixels, postprocess.crops, postprocess.crop_side) for pixels in pixels_B3SS])

    def _encoded(self, pixels_B3SS: npt.NDArray[np.float32]) -> Tensor:
        pixels = torch.from_numpy(self.crops(pixels_B3SS))
        return self.backbone.encode(pixels, encoder=self.segmenter.settings.encoder)

    def maps(self, latents_B4hw: Tensor) -> tuple[Tensor, Tensor]:
        """Return cross and WAS maps of clean latents, (B,P,h,w) float32 each, before parts are dropped or rescaled."""
        with torch.no_grad():
            runs = [(each, self._run(attend, latents_B4hw, each)) for each in passes(self.segmenter.settings)]
            cross_BPhw, was_BPhw = accumulated(runs, self._postprocess)
        return cross_BPhw.float(), was_BPhw.float()

    def full_maps(self, latents_B4hw: Tensor) -> tuple[Tensor, Tensor]:
        """Return averaged cross maps (B,P,h,w) and self-attention maps (B,N,N) of clean latents: what is exported."""
        width = self.backbone.latent_size
        with torch.no_grad():
            runs = [(each, self._run(attention_maps, latents_B4hw, each)) for each in passes(self.segmenter.settings)]
        cross_BPhw = mean([each.oriented(run.cross_BPhw) for each, run in runs])
        return cross_BPhw, mean([each.oriented_self(run.self_BNN, width) for each, run in runs])

    def _run(self, maps_of: Callable[..., Result], latents_B4hw: Tensor, each: Pass) -> Result:
        """Run one pass through `attend` or `attention_maps`."""
        settings, backbone = self.segmenter.settings, self.backbone
        timestep = torch.tensor(each.timestep, device=backbone.device)
        noise_14hw = self._noise_R4hw[each.sample : each.sample + 1]
        return maps_of(
            backbone.unet,
            backbone.add_noise(each.oriented(latents_B4hw), noise_14hw, timestep),
            timestep,
            self._text_1TD,
            len(self.segmenter.parts),
            settings.layers,
            over_parts=settings.over_parts,
        )

    def scores(self, images_HW3: Sequence[npt.NDArray[np.uint8]], *, use_was: bool = True) -> Tensor:
        """Return the WAS maps (B,P,h,w) float32 of RGB uint8 images, (B,P,S,S) with patches; parts left out are 0.

        Without `use_was`, the cross maps in their place.
        """
        return torch.stack([scores_Phw for scores_Phw, _ in self._scored(images_HW3, use_was)])

    def _scored(
        self, images_HW3: Sequence[npt.NDArray[np.uint8]], use_was: bool
    ) -> Iterator[tuple[Tensor, npt.NDArray[np.float32]]]:
        """Yield the scores of each image, and the fitted image."""
        crops = len(self._postprocess.crops)
        for start in range(0, len(images_HW3), self.batch_size):
            pixels_B3SS = self.pixels(images_HW3[start : start + self.batch_size])
            cross_BPhw, was_BPhw = self.maps(self._encoded(pixels_B3SS))
            maps = (cross_BPhw, was_BPhw if use_was else cross_BPhw)
            for cross, weighted, pixels in zip(*(each.split(crops) for each in maps), pixels_B3SS, strict=True):
                yield finished(cross, weighted, self._postprocess), pixels

    def mask(self, image_HW3: npt.NDArray[np.uint8], *, use_was: bool = True) -> npt.NDArray[np.uint8]:
        """Return the mask of one RGB uint8 image: part indices, uint8 (H,W), at the image's own size."""
        return self.masks([image_HW3], use_was=use_was)[0]

    def mask_and_scores(self, image_HW3: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], Tensor]:
        """Return what `mask` and `scores` return of one image, from one pass."""
        ((scores_Phw, pixels_3SS),) = self._scored([image_HW3], use_was=True)
        return self._mask(scores_Phw, pixels_3SS, image_HW3.shape[0], image_HW3.shape[1]), scores_Phw

    def masks(
        self, images_HW3: Sequence[npt.NDArray[np.uint8]], *, use_was: bool = True
    ) -> list[npt.NDArray[np.uint8]]:
        """Return the masks of several images, as `mask` does."""
        pairs = zip(self._scored(images_HW3, use_was), images_HW3, strict=True)
        return [self._mask(*scored, image.shape[0], image.shape[1]) for scored, image in pairs]

    def finish(
        self, cross_BPhw: Tensor, was_BPhw: Tensor, pixels_3SS: npt.NDArray[np.float32], size: tuple[int, int]
    ) -> npt.NDArray[np.uint8]:
        """Return the mask, uint8 of `size` (H,W), of one fitted image and what `maps` gave for its crops."""
        return self._mask(finished(cross_BPhw, was_BPhw, self._postprocess), pixels_3SS, *size)

    def _mask(
        self, scores_Phw: Tensor, pixels_3SS: npt.NDArray[np.float32], height: int, width: int
    ) -> npt.NDArray[np.uint8]:
        guided = sharpened(scores_Phw, self._postprocess, torch.from_numpy(pixels_3SS).to(scores_Phw.device))
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
