"""The three losses of a step and their sum, eq. 4, 7 and 8.

Shape suffixes: B batch, P parts, h, w map sides.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from slime_optimize.attention import WasMaps
from slime_optimize.settings import Settings

# Far under any share that a softmax over 77 tokens gives in practice; keeps the logarithm finite.
_TINY = 1e-8


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Scalars with gradients: eq. 4, eq. 7, the diffusion loss, and eq. 8, their weighted sum."""

    cross_entropy: Tensor
    was: Tensor
    diffusion: Tensor
    total: Tensor


def class_weights(mask_Bhw: Tensor, parts: int, power: float = 1.0) -> Tensor:
    """(All pixels / the part's pixels) ** power, (P,) float32; 0 for a part that is not in the mask."""
    counts = torch.bincount(mask_Bhw.flatten(), minlength=parts).float()
    return torch.where(counts > 0, (counts.sum() / counts.clamp(min=1)) ** power, torch.zeros_like(counts))


def map_cross_entropy(cross_BPhw: Tensor, mask_Bhw: Tensor, power: float = 1.0) -> Tensor:
    """eq. 4: -log of the true part's share of the softmax over all tokens, a class-weighted mean."""
    weights = class_weights(mask_Bhw, cross_BPhw.shape[1], power)
    return F.nll_loss((cross_BPhw + _TINY).log(), mask_Bhw, weight=weights)


def logit_cross_entropy(logits_BPhw: Tensor, mask_Bhw: Tensor, power: float = 1.0) -> Tensor:
    """eq. 4 as published: softmax over the parts alone, of the mean raw logits."""
    return F.cross_entropy(logits_BPhw, mask_Bhw, weight=class_weights(mask_Bhw, logits_BPhw.shape[1], power))


def was_loss(was_BPhw: Tensor, mask_Bhw: Tensor) -> Tensor:
    """eq. 7: squared distance to each part's binary mask, mean over pixels and batch, sum over parts.

    The paper writes a sum over pixels as well; with alpha = 1 that would drown the cross entropy.
    """
    truth_BPhw = F.one_hot(mask_Bhw, was_BPhw.shape[1]).permute(0, 3, 1, 2).to(was_BPhw.dtype)
    return F.mse_loss(was_BPhw, truth_BPhw) * was_BPhw.shape[1]


def losses(maps: WasMaps, mask_Bhw: Tensor, target_B4hw: Tensor, settings: Settings) -> Losses:
    """eq. 8 = eq. 4 + alpha x eq. 7 + beta x diffusion. mask_Bhw: int64 part indices at map size."""
    if settings.cross_entropy == "logits":
        entropy = logit_cross_entropy(maps.logits_BPhw.float(), mask_Bhw, settings.class_weight)
    else:
        entropy = map_cross_entropy(maps.cross_BPhw.float(), mask_Bhw, settings.class_weight)
    was = was_loss(maps.was_BPhw.float(), mask_Bhw)
    diffusion = F.mse_loss(maps.predicted_B4hw.float(), target_B4hw.float())
    total = entropy + settings.alpha * was + settings.beta * diffusion
    return Losses(cross_entropy=entropy, was=was, diffusion=diffusion, total=total)
