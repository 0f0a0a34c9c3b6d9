"""The encoder as a module from pixels to latents: what is traced to ONNX, once for each backbone and encoder.

Shape suffixes: B batch, S image side, h, w latent sides.
"""

from __future__ import annotations

from torch import Tensor, nn

from slime_optimize.backbone import Backbone


class Encoder(nn.Module):
    """PIXELS (B,3,S,S) float32 in [-1, 1] -> LATENTS (B,4,h,w): the posterior's mean, or the tiny encoder's answer,
    x the scaling factor.

    The same as `Backbone.encode` with `encoder`, which is what training and evaluation use.
    """

    def __init__(self, backbone: Backbone, encoder: str = "vae") -> None:
        super().__init__()
        self.model = backbone.encoder_model(encoder)
        self.is_tiny = encoder == "tiny"
        self.scaling_factor = float(self.model.config.scaling_factor)

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        encoded = self.model.encode(pixels_B3SS)
        latents: Tensor = encoded.latents if self.is_tiny else encoded.latent_dist.mean
        return latents * self.scaling_factor
