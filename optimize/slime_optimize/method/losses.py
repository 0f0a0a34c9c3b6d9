"""The three losses of a step and their sum, eq. 4, 7 and 8.

Shape suffixes: B batch, P parts, h, w map sides.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

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


def class_weights(mask_Bhw: Tensor, parts: int, power: float = 1.0, *, foreground: bool = False) -> Tensor:
    """(All pixels / the part's pixels) ** power, (P,) float32; 0 for a part that is not in the mask.

    With `foreground`, as published: the background's pixels do not count among all, and it weighs 1.
    """
    counts = torch.bincount(mask_Bhw.flatten(), minlength=parts).float()
    everything = counts[1:].sum() if foreground else counts.sum()
    weights = torch.where(counts > 0, (everything / counts.clamp(min=1)) ** power, torch.zeros_like(counts))
    if foreground:
        weights[0] = 1
    return weights


def map_cross_entropy(cross_BPhw: Tensor, mask_Bhw: Tensor, weights_P: Tensor) -> Tensor:
    """eq. 4: -log of the true part's share of the softmax over all tokens, a class-weighted mean."""
    return F.nll_loss((cross_BPhw + _TINY).log(), mask_Bhw, weight=weights_P.to(cross_BPhw.dtype))


def logit_cross_entropy(logits_BPhw: Tensor, mask_Bhw: Tensor, weights_P: Tensor) -> Tensor:
    """eq. 4 as published: softmax over the parts alone, of the mean raw logits."""
    return F.cross_entropy(logits_BPhw, mask_Bhw, weight=weights_P.to(logits_BPhw.dtype))


def was_loss(was_BPhw: Tensor, mask_Bhw: Tensor, reduction: str = "mean") -> Tensor:
    """eq. 7: squared distance to each part's binary mask, summed over parts, mean over the batch.

    Over pixels their mean, or with "sum" what the paper writes, which with alpha = 1 drowns the cross entropy.
    """
    truth_BPhw = F.one_hot(mask_Bhw, was_BPhw.shape[1]).permute(0, 3, 1, 2).to(was_BPhw.dtype)
    per_pixel = F.mse_loss(was_BPhw, truth_BPhw) * was_BPhw.shape[1]
    return per_pixel if reduction == "mean" else per_pixel * was_BPhw[0, 0].numel()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a step's passes gave: cross maps, mean raw logits and WAS maps (B,P,h,w), noise or velocity (B,4,h,w)."""

    cross_BPhw: Tensor
    logits_BPhw: Tensor
    was_BPhw: Tensor
    predicted_B4hw: Tensor


def losses(answer: Answer, mask_Bhw: Tensor, target_B4hw: Tensor, settings: Settings) -> Losses:
    """eq. 8 = eq. 4 + alpha x eq. 7 + beta x diffusion. mask_Bhw: int64 part indices at map size.

    At least float32 throughout: half-precision maps are raised first.
    """
    logits_BPhw = _at_least_single(answer.logits_BPhw)
    foreground = settings.class_counts == "foreground"
    weights = class_weights(mask_Bhw, logits_BPhw.shape[1], settings.class_weight_power, foreground=foreground)
    if settings.cross_entropy == "logits":
        entropy = logit_cross_entropy(logits_BPhw, mask_Bhw, weights)
    else:
        entropy = map_cross_entropy(_at_least_single(answer.cross_BPhw), mask_Bhw, weights)
    was = was_loss(_at_least_single(answer.was_BPhw), mask_Bhw, settings.was_reduction)
    diffusion = F.mse_loss(_at_least_single(answer.predicted_B4hw), _at_least_single(target_B4hw))
    total = entropy + settings.alpha * was + settings.beta * diffusion
    return Losses(cross_entropy=entropy, was=was, diffusion=diffusion, total=total)


def _at_least_single(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
