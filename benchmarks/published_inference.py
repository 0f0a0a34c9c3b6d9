"""Segmentation as the published code computes it, to measure ours against. Ours needs none of this.

One image at a time; the VAE's posterior sampled; a batch of two, unconditional and conditional, through the whole
UNet; every attention written out, its scores and chances held; raw scores of the chosen layers of both halves kept,
and turned into averaged maps; a product of N x N elements for each part; each part's map enlarged and rescaled by
itself. What it has in common with a step of training is published_step.py's.

Shape suffixes: B images, h, w latent sides, N = h*w, T tokens, D width, K parts, S image side.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from benchmarks.published_step import attended, keeping, over_heads, sampled
from torch import Tensor

from slime_optimize.backbone import Backbone
from slime_optimize.method.attention import Layers
from slime_optimize.segmenter import Segmenter


@dataclass(frozen=True, kw_only=True)
class PublishedInference:
    """The networks and both embeddings, empty prompt and learned; the noise is drawn anew for each image.

    threshold: a part whose cross map stays under it is left out. suppress: of the first part kept, what is under its
    mean counts 0, as published; without, the masks are those of segmenters that only rescale.
    """

    unet: Any
    vae: Any
    scheduler: Any
    empty_1TD: Tensor
    text_1TD: Tensor
    parts: int
    timestep: int = 100
    threshold: float = 0.2
    suppress: bool = True
    layers: Layers = field(default_factory=Layers)

    @classmethod
    def of(cls, segmenter: Segmenter, backbone: Backbone) -> PublishedInference:
        """For a segmenter's embeddings, threshold, timestep and layers."""
        settings = segmenter.settings
        return cls(
            unet=backbone.unet,
            vae=backbone.vae,
            scheduler=backbone.scheduler,
            empty_1TD=backbone.encode_text(""),
            text_1TD=segmenter.text_embedding.to(backbone.device, backbone.dtype),
            parts=len(segmenter.parts),
            timestep=settings.t_test,
            threshold=settings.threshold,
            suppress=settings.suppress_first_part,
            layers=settings.layers,
        )

    def __call__(self, pixels_B3SS: Tensor) -> Tensor:
        """Pixels in [-1, 1] -> masks of part numbers, int64 (B,S,S). One by one: its batch is the two halves."""
        side = int(pixels_B3SS.shape[-1])
        return torch.stack([self.scores(*self.maps(self.encode(one[None])), side).argmax(0) for one in pixels_B3SS])

    @torch.no_grad()
    def encode(self, pixels_13SS: Tensor) -> Tensor:
        """Latents (1,4,h,w)."""
        return sampled(self.vae, pixels_13SS)

    @torch.no_grad()
    def maps(self, latents_14hw: Tensor, noise_14hw: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Cross maps (K,h,w), and a self-attention map (h,w) of queries for each key (N,h,w)."""
        noise_14hw = torch.randn_like(latents_14hw) if noise_14hw is None else noise_14hw
        step = torch.tensor([self.timestep], device=latents_14hw.device)
        noised_14hw = self.scheduler.add_noise(latents_14hw, noise_14hw, step)
        text_BTD = torch.cat([self.empty_1TD, self.text_1TD])
        kept: dict[str, Tensor] = {}
        with keeping(self.unet, self.layers, kept):
            self.unet(torch.cat([noised_14hw] * 2), step, encoder_hidden_states=text_BTD)
        size = (int(latents_14hw.shape[-2]), int(latents_14hw.shape[-1]))
        cross = [over_heads(kept[name].softmax(-1), self.parts, size)[1] for name in self.layers.cross]
        self_ = [attended(kept[name], size) for name in self.layers.self_]
        return torch.stack(cross).mean(0), torch.stack(self_).mean(0)

    @torch.no_grad()
    def scores(self, cross_Khw: Tensor, self_Nhw: Tensor, side: int) -> Tensor:
        """What the mask is the argmax of, (K,S,S); 0 for parts that are left out."""
        scores_KSS = cross_Khw.new_zeros(self.parts, side, side)
        cross_KN = cross_Khw.flatten(1)
        kept = torch.where(cross_KN.amax(1) >= self.threshold)[0].tolist()
        for turn, part in enumerate(kept):
            values_N = cross_KN[part]
            if self.suppress and turn == 0:
                values_N = torch.where(values_N > values_N.mean(), values_N, 0.0)
            was_hw = (values_N[:, None, None] * self_Nhw).sum(0)  # N x N elements
            was_SS = F.interpolate(was_hw[None, None], (side, side), mode="bilinear")[0, 0]
            low, high = cross_KN[part].min(), cross_KN[part].max()
            steepness = (was_SS.max() - was_SS.min()) / (high - low)
            steepness = torch.where((steepness == 0) | steepness.isnan(), 1e-7, steepness)
            scores_KSS[part] = was_SS / steepness + (low - was_SS.min() / steepness)
        return scores_KSS
