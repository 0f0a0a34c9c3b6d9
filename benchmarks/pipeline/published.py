"""A training step and inference as the method's published code computes them, to measure ours against.

Both are guided: a batch of two, unconditional and conditional, goes through the whole UNet. Every attention is written
out, with its scores and probabilities held; raw scores of the chosen layers are kept, and turned into averaged maps;
WAS is a product of K x N x N elements. The image is encoded anew each time, with the VAE's posterior sampled.

The training step computes the gradient through both halves; weights are frozen. Left out are the further passes over
patches that the published step makes only to log an IoU, and the resizing of every image to 512 pixels. Inference takes
one image at a time; each part's map is enlarged and rescaled by itself.

Shape suffixes: B batch (unconditional and conditional), H heads, h, w latent sides, N = h*w, M pixels of a layer,
T tokens, D width, K parts, S image side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

from slime_optimize.backbone import Backbone
from slime_optimize.layers import Layers
from slime_optimize.method.losses import Losses
from slime_optimize.method.processors import PlainAttnProcessor
from slime_optimize.segmenter import Segmenter

GUIDANCE = 100.0
DIFFUSION_WEIGHT = 0.005


@dataclass(kw_only=True)
class _Scores(PlainAttnProcessor):
    """An attention processor that holds scores and probabilities of all heads; `kept` gets the scores."""

    name: str
    kept: dict[str, Tensor] | None = field(default=None, repr=False)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        queries, keys, values = (each.flatten(0, 1) for each in (query, key, value))
        room = queries.new_empty(queries.shape[0], queries.shape[1], keys.shape[1])
        scores = torch.baddbmm(room, queries, keys.transpose(1, 2), beta=0, alpha=scale)
        if self.kept is not None:
            self.kept[self.name] = scores
        return torch.bmm(scores.softmax(-1), values).view_as(query)


@dataclass(frozen=True, kw_only=True)
class PublishedStep:
    """The networks, and what stays the same over the steps; empty_1TD is the empty prompt's embedding."""

    unet: Any
    scheduler: Any
    empty_1TD: Tensor
    parts: int
    layers: Layers = field(default_factory=Layers)

    def losses(
        self, latents_14hw: Tensor, noise_14hw: Tensor, timestep_1: Tensor, mask_hw: Tensor, text_1TD: Tensor
    ) -> Losses:
        """Return one image's three losses and their sum; mask_hw holds int64 part indices at latent size."""
        noised_14hw = self.scheduler.add_noise(latents_14hw, noise_14hw, timestep_1)
        text_BTD = torch.cat([self.empty_1TD, text_1TD])
        kept: dict[str, Tensor] = {}
        with keeping(self.unet, self.layers, kept):
            answer_B4hw = self.unet(torch.cat([noised_14hw] * 2), timestep_1, encoder_hidden_states=text_BTD).sample
        size = (int(mask_hw.shape[0]), int(mask_hw.shape[1]))
        logits_Khw = torch.stack([over_heads(kept[name], self.parts, size) for name in self.layers.cross]).mean(0)[1]
        self_Nhw = torch.stack([attended(kept[name], size) for name in self.layers.self_]).mean(0)
        kept.clear()
        free_14hw, told_14hw = answer_B4hw.chunk(2)
        guided_14hw = free_14hw + GUIDANCE * (told_14hw - free_14hw)
        truth_Khw = (mask_hw == torch.arange(self.parts, device=mask_hw.device)[:, None, None]).to(logits_Khw.dtype)
        entropy = F.cross_entropy(logits_Khw[None], mask_hw[None], weight=_weights(truth_Khw))
        cross_Khw = F.interpolate(logits_Khw.softmax(0)[None], mask_hw.shape, mode="bilinear")[0]
        was_Khw = (self_Nhw[None] * cross_Khw.flatten(1)[..., None, None]).sum(1)  # K x N x N elements
        was = F.mse_loss(was_Khw, truth_Khw) * self.parts
        diffusion = F.mse_loss(guided_14hw, noise_14hw)
        total = entropy + was + DIFFUSION_WEIGHT * diffusion
        return Losses(cross_entropy=entropy, was=was, diffusion=diffusion, total=total)


@dataclass(frozen=True, kw_only=True)
class PublishedInference:
    """The networks and both embeddings, of the empty prompt and learned; noise is drawn anew for each image.

    threshold: a part whose cross map stays under it is left out. suppress: in the map of the first part that is kept,
    values under the mean count as 0, as published; without it, masks are those of segmenters that only rescale.
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
        """Return the inference with a segmenter's embeddings, threshold, timestep and layers."""
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
        """Return masks of part numbers, int64 (B,S,S), one after the other: the batch is the two halves."""
        side = int(pixels_B3SS.shape[-1])
        return torch.stack([self.scores(*self.maps(self.encode(one[None])), side).argmax(0) for one in pixels_B3SS])

    @torch.no_grad()
    def encode(self, pixels_13SS: Tensor) -> Tensor:
        """Return latents (1,4,h,w)."""
        return sampled(self.vae, pixels_13SS)

    @torch.no_grad()
    def maps(self, latents_14hw: Tensor, noise_14hw: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return cross maps (K,h,w), and a self-attention map of queries for each key (N,h,w)."""
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
        """Return what the mask is the argmax of, (K,S,S); 0 for parts that are left out."""
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


def sampled(vae: Any, pixels_13SS: Tensor) -> Tensor:
    """Return a sample of the VAE's posterior of pixels in [-1, 1], scaled (1,4,h,w)."""
    before = dict(vae.attn_processors)
    try:
        vae.set_attn_processor(AttnProcessor())  # its one attention by diffusers' unfused processor
        sample: Tensor = vae.encode(pixels_13SS).latent_dist.sample()
    finally:
        vae.set_attn_processor(before)
    return sample * float(vae.config.scaling_factor)


def over_heads(maps_XMT: Tensor, parts: int, size: tuple[int, int]) -> Tensor:
    """Return the means over heads (B,K,h,w) of a cross layer's maps of both halves; only the second is used."""
    halves = torch.stack(maps_XMT.chunk(2))  # (B,H,M,T)
    side = math.isqrt(halves.shape[2])
    chosen = halves[..., torch.arange(parts, device=halves.device)]
    maps_BHKmm = chosen.reshape(2, -1, side, side, parts).permute(0, 1, 4, 2, 3)
    return torch.stack([F.interpolate(half, size, mode="bilinear").mean(0) for half in maps_BHKmm])


def attended(scores_XNN: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a map of queries for each key (N,h,w), probabilities of the conditional half, of a self layer's scores."""
    of_text = scores_XNN[scores_XNN.shape[0] // 2 :].softmax(-1)
    side = math.isqrt(of_text.shape[1])
    maps_HNhw = of_text.reshape(-1, side, side, of_text.shape[2]).permute(0, 3, 1, 2)
    return F.interpolate(maps_HNhw, size, mode="bilinear").mean(0)


def _weights(truth_Khw: Tensor) -> Tensor:
    """Return each part's weight (K,): foreground pixels / its own; the background weighs 1, what is absent 0."""
    counts_K = truth_Khw.sum((1, 2))
    counts_K[0] = 0
    weights_K = torch.where(counts_K > 0, counts_K.sum() / (counts_K + 1e-6), 0.0)
    weights_K[0] = 1
    return weights_K


@contextmanager
def keeping(unet: Any, layers: Layers, kept: dict[str, Tensor]) -> Iterator[None]:
    """Set plain processors on every attention for the length of a with-block; the chosen ones' scores go to `kept`."""
    chosen = {*layers.cross, *layers.self_}
    before = dict(unet.attn_processors)
    names = {key: key.removesuffix(".processor") for key in before}
    try:
        unet.set_attn_processor(
            {key: _Scores(name=name, kept=kept if name in chosen else None) for key, name in names.items()}
        )
        yield
    finally:
        unet.set_attn_processor(before)
