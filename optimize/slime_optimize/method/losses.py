"""One step of the optimisation: noise, one forward pass, and the three losses of eq. 4, 7 and 8.

Pixels that are IGNORED in the mask count in none of them.

Shape suffixes: B views of a step, P parts, h, w map and latent sides, T tokens, D text width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from slime_optimize.backbone import Backbone
from slime_optimize.data.annotations import IGNORED
from slime_optimize.method.attention import attend
from slime_optimize.method.precision import FP32, computing
from slime_optimize.method.processors import plain
from slime_optimize.method.seeds import generator
from slime_optimize.settings import Settings

# Far below any share that a softmax over 77 tokens gives in practice; it keeps the logarithm finite.
_TINY = 1e-8


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Scalars with gradients: cross entropy (eq. 4), WAS loss (eq. 7), diffusion loss, weighted sum (eq. 8)."""

    cross_entropy: Tensor
    was: Tensor
    diffusion: Tensor
    total: Tensor


def class_weights(mask_Bhw: Tensor, parts: int, power: float = 1.0, *, foreground: bool = False) -> Tensor:
    """Return each part's weight, (all pixels / its pixels) ** power, (P,) float32; 0 for a part not in the mask.

    With `foreground`, as in the published code, the background's pixels do not count among all, and it weighs 1.
    """
    counts = torch.bincount(mask_Bhw[mask_Bhw != IGNORED], minlength=parts).float()
    everything = counts[1:].sum() if foreground else counts.sum()
    weights = torch.where(counts > 0, (everything / counts.clamp(min=1)) ** power, torch.zeros_like(counts))
    if foreground:
        weights[0] = 1
    return weights


def map_cross_entropy(cross_BPhw: Tensor, mask_Bhw: Tensor, weights_P: Tensor) -> Tensor:
    """Return eq. 4: -log of the true part's share of the softmax over all tokens, a class-weighted mean."""
    if _nothing_counts(mask_Bhw):
        return cross_BPhw.sum() * 0
    weights_P = weights_P.to(cross_BPhw.dtype)
    return F.nll_loss((cross_BPhw + _TINY).log(), mask_Bhw, weight=weights_P, ignore_index=IGNORED)


def logit_cross_entropy(logits_BPhw: Tensor, mask_Bhw: Tensor, weights_P: Tensor) -> Tensor:
    """Return eq. 4 as the published code has it: softmax over the parts alone, of the mean raw logits."""
    if _nothing_counts(mask_Bhw):
        return logits_BPhw.sum() * 0
    return F.cross_entropy(logits_BPhw, mask_Bhw, weight=weights_P.to(logits_BPhw.dtype), ignore_index=IGNORED)


def was_loss(was_BPhw: Tensor, mask_Bhw: Tensor, reduction: str = "mean") -> Tensor:
    """Return eq. 7: squared distance to each part's binary mask, summed over parts, mean over the batch.

    Over the pixels that count it is the mean, or with `reduction` "sum" the sum, as the paper writes.
    """
    counted_Bhw = mask_Bhw != IGNORED
    truth_BPhw = F.one_hot(mask_Bhw * counted_Bhw, was_BPhw.shape[1]).permute(0, 3, 1, 2).to(was_BPhw.dtype)
    per_pixel = counted_mean(was_BPhw, truth_BPhw, counted_Bhw) * was_BPhw.shape[1]
    return per_pixel if reduction == "mean" else per_pixel * (counted_Bhw.sum() / len(mask_Bhw))


def counted_mean(values_BChw: Tensor, wanted_BChw: Tensor, counted_Bhw: Tensor) -> Tensor:
    """Return the mean squared distance over channels and the pixels that count, 0 where none does."""
    if bool(counted_Bhw.all()):
        return F.mse_loss(values_BChw, wanted_BChw)
    squared_BChw = (values_BChw - wanted_BChw) ** 2 * counted_Bhw[:, None]
    return squared_BChw.sum() / (counted_Bhw.sum().clamp(min=1) * values_BChw.shape[1])


def _nothing_counts(mask_Bhw: Tensor) -> bool:
    """Return whether every pixel is IGNORED, over which a weighted mean is no number."""
    return bool((mask_Bhw == IGNORED).all())


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a step's passes give: cross maps, mean raw logits and WAS maps (B,P,h,w), noise or velocity (B,4,h,w)."""

    cross_BPhw: Tensor
    logits_BPhw: Tensor
    was_BPhw: Tensor
    predicted_B4hw: Tensor


def losses(answer: Answer, mask_Bhw: Tensor, target_B4hw: Tensor, settings: Settings) -> Losses:
    """Return eq. 8 = eq. 4 + alpha x eq. 7 + beta x diffusion, and its terms; mask_Bhw: int64 part indices or IGNORED.

    Half-precision maps are converted to float32 first.
    """
    logits_BPhw = _at_least_single(answer.logits_BPhw)
    foreground = settings.class_counts == "foreground"
    weights = class_weights(mask_Bhw, logits_BPhw.shape[1], settings.class_weight_power, foreground=foreground)
    if settings.cross_entropy == "logits":
        entropy = logit_cross_entropy(logits_BPhw, mask_Bhw, weights)
    else:
        entropy = map_cross_entropy(_at_least_single(answer.cross_BPhw), mask_Bhw, weights)
    was = was_loss(_at_least_single(answer.was_BPhw), mask_Bhw, settings.was_reduction)
    predicted_B4hw, target_B4hw = _at_least_single(answer.predicted_B4hw), _at_least_single(target_B4hw)
    diffusion = counted_mean(predicted_B4hw, target_B4hw, mask_Bhw != IGNORED)
    total = entropy + settings.alpha * was + settings.beta * diffusion
    return Losses(cross_entropy=entropy, was=was, diffusion=diffusion, total=total)


def _at_least_single(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


@dataclass(frozen=True, kw_only=True)
class Stepper:
    """Computes the losses of each step of a run of `seed`, for `parts` parts with the background.

    The UNet computes in `precision`, one of slime_optimize.method.precision; all else is float32.
    """

    backbone: Backbone
    settings: Settings
    parts: int
    seed: int
    precision: str = FP32

    def losses(self, latents_B4hw: Tensor, mask_Bhw: Tensor, text_1TD: Tensor, step: int) -> Losses:
        """Return the losses of one conditional forward pass over clean latents, with random timesteps and noise.

        mask_Bhw: int64 part indices at latent size; text_1TD: float32, differentiable. Each view has its own timestep.
        """
        timesteps_B, noise_B4hw = self._sample(latents_B4hw, step)
        answer = self.answer(self.backbone.add_noise(latents_B4hw, noise_B4hw, timesteps_B), timesteps_B, text_1TD)
        target_B4hw = self.backbone.target(latents_B4hw, noise_B4hw, timesteps_B)
        return losses(answer, mask_Bhw, target_B4hw, self.settings)

    def answer(self, noised_B4hw: Tensor, timesteps_B: Tensor, text_1TD: Tensor) -> Answer:
        """Return what the losses compare, for noised latents (B,4,h,w)."""
        settings, unet = self.settings, self.backbone.unet
        text_1TD = text_1TD.to(self.backbone.dtype)
        with computing(self.precision, unet):
            maps = attend(unet, noised_B4hw, timesteps_B, text_1TD, self.parts, settings.layers)
        source_BPhw = maps.logits_BPhw.softmax(1) if settings.was_source == "parts" else maps.cross_BPhw
        return Answer(
            cross_BPhw=maps.cross_BPhw,
            logits_BPhw=maps.logits_BPhw,
            was_BPhw=maps.accumulate(source_BPhw),
            predicted_B4hw=self._guided(maps.predicted_B4hw, noised_B4hw, timesteps_B),
        )

    def _guided(self, conditional_B4hw: Tensor, noised_B4hw: Tensor, timesteps_B: Tensor) -> Tensor:
        """Return u + g (c - u), classifier-free guidance; no gradient flows through the unconditional u."""
        if self.settings.guidance_scale == 0:
            return conditional_B4hw
        with torch.no_grad(), plain(self.backbone.unet), computing(self.precision, self.backbone.unet):
            (unconditional_B4hw,) = self.backbone.unet(
                noised_B4hw, timesteps_B, encoder_hidden_states=self.empty_prompt, return_dict=False
            )
        difference_B4hw = conditional_B4hw - unconditional_B4hw
        guided: Tensor = unconditional_B4hw + self.settings.guidance_scale * difference_B4hw
        return guided

    @cached_property
    def empty_prompt(self) -> Tensor:
        """Embedding of the empty prompt, (1,T,D)."""
        return self.backbone.encode_text("")

    def _sample(self, latents_B4hw: Tensor, step: int) -> tuple[Tensor, Tensor]:
        random = generator(self.seed, "steps", step)
        low, high = self.settings.t_opt
        timesteps_B = torch.randint(low, high + 1, (len(latents_B4hw),), generator=random)
        noise_B4hw = torch.randn(latents_B4hw.shape, generator=random)
        return timesteps_B.to(self.backbone.device), noise_B4hw.to(self.backbone.device, self.backbone.dtype)
