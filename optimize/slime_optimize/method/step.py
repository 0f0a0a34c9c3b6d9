"""One step of the optimisation: noise, one forward pass, the losses.

Shape suffixes: B views of a step, P parts, h, w latent sides, T tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from slime_optimize.backbone import Backbone
from slime_optimize.method.attention import attend
from slime_optimize.method.losses import Answer, Losses, losses
from slime_optimize.method.processors import plain
from slime_optimize.method.seeds import generator
from slime_optimize.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Stepper:
    """What stays the same over the steps of a run of `seed`."""

    backbone: Backbone
    settings: Settings
    parts: int
    seed: int

    def losses(self, latents_B4hw: Tensor, mask_Bhw: Tensor, text_1TD: Tensor, step: int) -> Losses:
        """One conditional forward pass over clean latents at drawn timesteps and noise, one for each view.

        mask_Bhw: int64 part indices at latent size; text_1TD: float32, differentiable.
        """
        timesteps_B, noise_B4hw = self._drawn(latents_B4hw, step)
        answer = self.answer(self.backbone.add_noise(latents_B4hw, noise_B4hw, timesteps_B), timesteps_B, text_1TD)
        target_B4hw = self.backbone.target(latents_B4hw, noise_B4hw, timesteps_B)
        return losses(answer, mask_Bhw, target_B4hw, self.settings)

    def answer(self, noised_B4hw: Tensor, timesteps_B: Tensor, text_1TD: Tensor) -> Answer:
        """What the losses compare, for noised latents (B,4,h,w)."""
        settings, unet = self.settings, self.backbone.unet
        text_1TD = text_1TD.to(self.backbone.dtype)
        maps = attend(unet, noised_B4hw, timesteps_B, text_1TD, self.parts, settings.layers)
        source_BPhw = maps.logits_BPhw.softmax(1) if settings.was_source == "parts" else maps.cross_BPhw
        return Answer(
            cross_BPhw=maps.cross_BPhw,
            logits_BPhw=maps.logits_BPhw,
            was_BPhw=maps.accumulate(source_BPhw),
            predicted_B4hw=self._guided(maps.predicted_B4hw, noised_B4hw, timesteps_B),
        )

    def _guided(self, conditional_B4hw: Tensor, noised_B4hw: Tensor, timesteps_B: Tensor) -> Tensor:
        """Classifier-free guidance: u + g (c - u). The unconditional half has nothing to learn, so no gradient."""
        if self.settings.guidance_scale == 0:
            return conditional_B4hw
        with torch.no_grad(), plain(self.backbone.unet):
            (free_B4hw,) = self.backbone.unet(
                noised_B4hw, timesteps_B, encoder_hidden_states=self.empty_prompt, return_dict=False
            )
        guided: Tensor = free_B4hw + self.settings.guidance_scale * (conditional_B4hw - free_B4hw)
        return guided

    @cached_property
    def empty_prompt(self) -> Tensor:
        """The embedding of the empty prompt."""
        return self.backbone.encode_text("")

    def _drawn(self, latents_B4hw: Tensor, step: int) -> tuple[Tensor, Tensor]:
        chance = generator(self.seed, "steps", step)
        low, high = self.settings.t_opt
        timesteps_B = torch.randint(low, high + 1, (len(latents_B4hw),), generator=chance)
        noise_B4hw = torch.randn(latents_B4hw.shape, generator=chance)
        return timesteps_B.to(self.backbone.device), noise_B4hw.to(self.backbone.device, self.backbone.dtype)
