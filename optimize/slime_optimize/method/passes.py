"""The UNet passes of one segmentation: one, unless a segmenter averages timesteps, draws of noise or mirror images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from slime_optimize.method.attention import Attended, mean
from slime_optimize.settings import Settings
from slime_was import Postprocess, prepared


@dataclass(frozen=True, kw_only=True)
class Pass:
    """Which timestep, which of the segmenter's draws of noise, and whether the latents are mirrored."""

    timestep: int
    draw: int = 0
    mirrored: bool = False

    def turned(self, maps_BXhw: Tensor) -> Tensor:
        """(B,X,h,w) to this pass's side, and back."""
        return maps_BXhw.flip(-1) if self.mirrored else maps_BXhw

    def turned_self(self, self_BNN: Tensor, width: int) -> Tensor:
        """A self-attention map [query, key] of a mirrored pass as that of the image, over maps `width` wide."""
        if not self.mirrored:
            return self_BNN
        pixels = int(self_BNN.shape[1])  # while a graph is traced, sizes are tensors; only the batch may vary
        as_maps = self_BNN.reshape(-1, pixels // width, width, pixels // width, width)
        return as_maps.flip(2, 4).reshape(-1, pixels, pixels)


def accumulated(runs: Sequence[tuple[Pass, Attended]], postprocess: Postprocess) -> tuple[Tensor, Tensor]:
    """Cross maps and WAS maps, (B,P,h,w) each, averaged over the passes, before parts are dropped or rescaled.

    Every pass accumulates the mean cross maps, which are known once all of them have run.
    """
    cross_BPhw = mean([each.turned(run.cross_BPhw) for each, run in runs])
    values_BPhw = prepared(cross_BPhw, postprocess)
    return cross_BPhw, mean([each.turned(run.accumulate(each.turned(values_BPhw))) for each, run in runs])


def passes(settings: Settings) -> tuple[Pass, ...]:
    """Every timestep with every draw, as the image is and, where wanted, mirrored."""
    return tuple(
        Pass(timestep=timestep, draw=draw, mirrored=mirrored)
        for timestep in (settings.t_test, *settings.extra_timesteps)
        for draw in range(settings.noise_samples)
        for mirrored in ((False, True) if settings.flip_average else (False,))
    )
