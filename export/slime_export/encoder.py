"""The VAE's encoder as a module from pixels to latents: what is traced to ONNX, once for each backbone.

Shape suffixes: B batch, S image side, h, w latent sides.
"""

from __future__ import annotations

from torch import Tensor, nn

from slime_optimize.backbone import Backbone


class Encoder(nn.Module):
    """PIXELS (B,3,S,S) float32 in [-1, 1] -> LATENTS (B,4,h,w): the posterior's mean x the scaling factor.

    The same as `Backbone.encode`, which is what training and evaluation use.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.vae = backbone.vae
        self.scaling_factor = float(backbone.vae.config.scaling_factor)

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        latents: Tensor = self.vae.encode(pixels_B3SS).latent_dist.mean * self.scaling_factor
        return latents
