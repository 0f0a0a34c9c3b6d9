"""A training step as the published code computes it, to measure ours against. Ours needs none of this.

Guided, with the gradient through both halves of a batch of two; every attention written out, its scores and chances
held; raw scores of the chosen layers kept, and turned into averaged maps; WAS as a product of K x N x N elements; the
image encoded anew, sampled, at each step. Weights are frozen, as there. Left out: the further passes over patches that
the published step makes only to log an IoU, and the resizing of every image to 512 pixels.

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

from slime_optimize.method.attention import Layers
from slime_optimize.method.losses import Losses

GUIDANCE = 100.0
DIFFUSION_WEIGHT = 0.005


@dataclass(kw_only=True)
class _Scores:
    """An attention processor that holds scores and chances of all heads; `kept` gets the scores."""

    name: str
    kept: dict[str, Tensor] | None = field(default=None, repr=False)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            attn.head_to_batch_dim(to(x))
            for to, x in ((attn.to_q, hidden_states), (attn.to_k, text), (attn.to_v, text))
        )
        room = query.new_empty(query.shape[0], query.shape[1], key.shape[1])
        scores = torch.baddbmm(room, query, key.transpose(1, 2), beta=0, alpha=attn.scale)
        if self.kept is not None:
            self.kept[self.name] = scores
        mixed = attn.batch_to_head_dim(torch.bmm(scores.softmax(-1), value))
        result: Tensor = attn.to_out[1](attn.to_out[0](mixed))
        return result


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
        """The step's three losses and their sum, of one image; mask_hw: int64 part indices at latent size."""
        noised_14hw = self.scheduler.add_noise(latents_14hw, noise_14hw, timestep_1)
        text_BTD = torch.cat([self.empty_1TD, text_1TD])
        kept: dict[str, Tensor] = {}
        with keeping(self.unet, self.layers, kept):
            answer_B4hw = self.unet(torch.cat([noised_14hw] * 2), timestep_1, encoder_hidden_states=text_BTD).sample
        size = (int(mask_hw.shape[0]), int(mask_hw.shape[1]))
        logits_Khw = torch.stack([over_heads(kept[name], self.parts, size) for name in self.layers.cross]).mean(0)[1]
        self_Nhw = torch.stack([attended(kept[name], size) for name in self.layers.self_]).mean(0)
        kept.clear()
        return self._sum(logits_Khw, self_Nhw, mask_hw, _guided(answer_B4hw), noise_14hw)

    def _sum(
        self, logits_Khw: Tensor, self_Nhw: Tensor, mask_hw: Tensor, guided_14hw: Tensor, noise_14hw: Tensor
    ) -> Losses:
        truth_Khw = (mask_hw == torch.arange(self.parts, device=mask_hw.device)[:, None, None]).to(logits_Khw.dtype)
        entropy = F.cross_entropy(logits_Khw[None], mask_hw[None], weight=_weights(truth_Khw))
        cross_Khw = F.interpolate(logits_Khw.softmax(0)[None], mask_hw.shape, mode="bilinear")[0]
        was_Khw = (self_Nhw[None] * cross_Khw.flatten(1)[..., None, None]).sum(1)  # K x N x N elements
        was = F.mse_loss(was_Khw, truth_Khw) * self.parts
        diffusion = F.mse_loss(guided_14hw, noise_14hw)
        total = entropy + was + DIFFUSION_WEIGHT * diffusion
        return Losses(cross_entropy=entropy, was=was, diffusion=diffusion, total=total)


def sampled(vae: Any, pixels_13SS: Tensor) -> Tensor:
    """Pixels in [-1, 1] -> a sample of the VAE's posterior, scaled (1,4,h,w)."""
    with _written_out(vae):
        sample: Tensor = vae.encode(pixels_13SS).latent_dist.sample()
    return sample * float(vae.config.scaling_factor)


def over_heads(maps_XMT: Tensor, parts: int, size: tuple[int, int]) -> Tensor:
    """A cross layer's maps of both halves' heads -> means over heads (B,K,h,w); only the second is used."""
    halves = torch.stack(maps_XMT.chunk(2))  # (B,H,M,T)
    side = math.isqrt(halves.shape[2])
    chosen = halves[..., torch.arange(parts, device=halves.device)]
    maps_BHKmm = chosen.reshape(2, -1, side, side, parts).permute(0, 1, 4, 2, 3)
    return torch.stack([F.interpolate(half, size, mode="bilinear").mean(0) for half in maps_BHKmm])


def attended(scores_XNN: Tensor, size: tuple[int, int]) -> Tensor:
    """A self layer's scores [query, key] -> the conditional half's chances, a map of queries for each key (N,h,w)."""
    of_text = scores_XNN[scores_XNN.shape[0] // 2 :].softmax(-1)
    side = math.isqrt(of_text.shape[1])
    maps_HNhw = of_text.reshape(-1, side, side, of_text.shape[2]).permute(0, 3, 1, 2)
    return F.interpolate(maps_HNhw, size, mode="bilinear").mean(0)


def _guided(answer_B4hw: Tensor) -> Tensor:
    free_14hw, told_14hw = answer_B4hw.chunk(2)
    return free_14hw + GUIDANCE * (told_14hw - free_14hw)


def _weights(truth_Khw: Tensor) -> Tensor:
    """Foreground pixels / the part's pixels; the background weighs 1, what is absent 0. (K,)"""
    counts_K = truth_Khw.sum((1, 2))
    counts_K[0] = 0
    weights_K = torch.where(counts_K > 0, counts_K.sum() / (counts_K + 1e-6), 0.0)
    weights_K[0] = 1
    return weights_K


@contextmanager
def keeping(unet: Any, layers: Layers, kept: dict[str, Tensor]) -> Iterator[None]:
    """The plain processors on every attention, for the length of a with-block; the chosen ones' scores go to `kept`."""
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


@contextmanager
def _written_out(vae: Any) -> Iterator[None]:
    """The VAE's one attention with diffusers' unfused processor, for the length of a with-block."""
    before = dict(vae.attn_processors)
    try:
        vae.set_attn_processor(AttnProcessor())
        yield
    finally:
        vae.set_attn_processor(before)
