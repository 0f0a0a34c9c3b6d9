"""One step of the optimisation: noise, one forward pass, the losses.

Shape suffixes: B views of a step, P parts, h, w latent sides, T tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from slime_optimize.attention import was_maps
from slime_optimize.backbone import Backbone
from slime_optimize.chance import generator
from slime_optimize.losses import Losses, losses
from slime_optimize.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Stepper:
    """What stays the same over the steps of a run of `seed`."""

    backbone: Backbone
    settings: Settings
    parts: int
    seed: int

    def losses(self, latents_B4hw: Tensor, mask_Bhw: Tensor, text_1TD: Tensor, step: int) -> Losses:
        """One forward pass over clean latents at drawn timesteps and noise, one for each view.

        mask_Bhw: int64 part indices at latent size; text_1TD: float32, differentiable.
        """
        backbone = self.backbone
        timesteps_B, noise_B4hw = self._drawn(latents_B4hw, step)
        noised_B4hw = backbone.add_noise(latents_B4hw, noise_B4hw, timesteps_B)
        maps = was_maps(
            backbone.unet,
            noised_B4hw,
            timesteps_B,
            text_1TD.to(backbone.dtype),
            self.parts,
            self.settings.layers,
            over_parts=self.settings.cross_entropy == "logits",
        )
        return losses(maps, mask_Bhw, backbone.target(latents_B4hw, noise_B4hw, timesteps_B), self.settings)

    def _drawn(self, latents_B4hw: Tensor, step: int) -> tuple[Tensor, Tensor]:
        chance = generator(self.seed, "steps", step)
        low, high = self.settings.t_opt
        timesteps_B = torch.randint(low, high + 1, (len(latents_B4hw),), generator=chance)
        noise_B4hw = torch.randn(latents_B4hw.shape, generator=chance)
        return timesteps_B.to(self.backbone.device), noise_B4hw.to(self.backbone.device, self.backbone.dtype)
