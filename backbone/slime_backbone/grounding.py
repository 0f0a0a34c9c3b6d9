"""Make words attend where they apply: cross-attention as it is computed while training, and what it adds to the loss.

Left alone, a small UNet fetches a caption's words wherever it likes and spreads them by convolution: the map of a word
then says nothing of its part (area under the ROC curve 0.4 to 0.6 in most layers), queries hardly vary over the
pixels, and a learned token takes all of a layer or nothing. Stable Diffusion's first token draws nine tenths of the
attention, words the rest, where they apply. Here that is wanted by the loss, without any mask:

    words   everything but the first token costs a little, so that a word is attended where it helps
    least   and yet each layer spends a tenth on words, or they would die before they mean something
    idle    padding and filler words cost more
    even    a query's mean over the pixels, but for its part along the first token's key, costs: no other token can be
            favoured everywhere at once
    size    large logits cost

and by what is hidden: some captions reach the UNet through one resolution of the up blocks alone; the other layers,
and a share of layers and pixels, look at the first token. What was trained is an ordinary checkpoint.

Legend: B batch, H heads, N pixels, T tokens, d head width, D text width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn import functional

from slime_optimize.method.processors import PlainAttnProcessor

HIDDEN_LAYERS = 0.25  # of the layers at the one level that tells, and so much of
HIDDEN_PIXELS = 0.1  # their pixels
LEAST = 0.1  # of a layer's attention, over the batch, that is for words


@dataclass(kw_only=True)
class BatchCaptions:
    """The captions of one batch, and what the forward pass finds of them.

    idle_BT: 1 where tokens say nothing. alone_B (bool): captions that come through one level alone, which is level_B,
    1 to 3. chance: the generator that hides layers and pixels. costs: left by the forward pass, a list by name.
    """

    idle_BT: Tensor
    alone_B: Tensor
    level_B: Tensor
    chance: torch.Generator | None
    costs: dict[str, list[Tensor]] = field(default_factory=dict)

    def cost(self, name: str) -> Tensor:
        """Return the cost of this name, the mean over the layers."""
        return torch.stack(self.costs[name]).mean()


@dataclass(kw_only=True)
class GroundedAttention:
    """What all processors of a UNet share: the batch's captions, or None where nothing is hidden and no cost kept."""

    captions: BatchCaptions | None = None


def install(unet: UNet2DConditionModel) -> GroundedAttention:
    """Set the processors; they hide and count once `GroundedAttention.captions` is there."""
    attention = GroundedAttention()
    unet.set_attn_processor({name: _Grounded(name, attention) for name in unet.attn_processors})
    return attention


def share_keys(unet: UNet2DConditionModel) -> None:
    """Average the gradients of cross-attention's keys over layers and heads: what began alike stays alike."""
    layers = [(m.to_k.weight.grad, m.heads) for n, m in unet.named_modules() if n.endswith("attn2")]
    heads = [grad.view(count, -1, grad.shape[1]) for grad, count in layers if grad is not None]
    mean_dD = torch.cat(heads).mean(0)
    for grad_HdD in heads:
        grad_HdD.copy_(mean_dD.expand_as(grad_HdD))


class _Grounded(PlainAttnProcessor):
    """diffusers' plain attention; with a batch's captions, a cross layer hides tokens and keeps its costs."""

    def __init__(self, name: str, attention: GroundedAttention) -> None:
        self.cross, self.attention = "attn2" in name, attention
        self.level = int(name.split(".")[1]) if name.startswith("up") else 0

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        if not self.cross:
            return functional.scaled_dot_product_attention(query, key, value)
        logits = ((query * scale) @ key.transpose(-1, -2)).float()
        shares = logits.softmax(-1)
        mixed = shares.to(value.dtype) @ value
        captions = self.attention.captions
        if captions is None:
            return mixed
        for name, cost in _costs(logits, shares, query, key, captions.idle_BT).items():
            captions.costs.setdefault(name, []).append(cost)
        return torch.where(self._hidden(captions, mixed), value[:, :, :1], mixed)

    def _hidden(self, captions: BatchCaptions, mixed: Tensor) -> Tensor:
        """Return which pixels see the first token alone, (B,1,N or 1,1) bool."""
        alone, elsewhere = captions.alone_B.view(-1, 1, 1, 1), (captions.level_B != self.level).view(-1, 1, 1, 1)
        if self.level == 0:
            return alone
        batch, _, pixels, _ = mixed.shape
        layer = torch.rand(batch, 1, 1, 1, device=mixed.device, generator=captions.chance) < HIDDEN_LAYERS
        pixel = torch.rand(batch, 1, pixels, 1, device=mixed.device, generator=captions.chance) < HIDDEN_PIXELS
        return alone & (elsewhere | layer | pixel)


def _costs(logits: Tensor, shares: Tensor, query: Tensor, key: Tensor, idle_BT: Tensor) -> dict[str, Tensor]:
    share_BT = shares.mean((1, 2))
    idle = (share_BT * idle_BT).sum(-1).mean()
    words = 1 - share_BT[:, 0].mean() - idle
    wide, first = query.float(), functional.normalize(key[:, :, :1].float(), dim=-1)
    along_BHN = (wide * first).sum(-1)
    constant = wide.mean(2).square().sum(-1) - along_BHN.mean(2).square()
    whole = (wide.square().sum(-1) - along_BHN.square()).mean(2).clamp_min(1e-4)
    return {
        "words": words + idle,
        "idle": idle,
        "least": functional.relu(math.log(LEAST) - (words + 1e-6).log()),
        "size": logits.square().mean(),
        "even": (constant / whole).mean(),
    }


WATCHED = (
    "up_blocks.3.attentions.0.transformer_blocks.0.attn1",
    "up_blocks.3.attentions.1.transformer_blocks.0.attn1",
    "up_blocks.2.attentions.2.transformer_blocks.0.attn2",
)


@torch.no_grad()
def effective_tokens(
    unet: UNet2DConditionModel, noisy: torch.Tensor, times: torch.Tensor, text: torch.Tensor
) -> dict[str, float]:
    """Return by a short name the effective number of tokens of the WATCHED layers: exp of their rows' mean entropy.

    A self-attention that attends to everything alike (N effective tokens) makes weighted accumulated self-attention
    worthless, whatever the denoising loss says.
    """
    found: dict[str, float] = {}
    hooks = []
    for name in WATCHED:
        layer = unet.get_submodule(name)
        block, index, kind = name.split(".")[1], name.split(".")[3], name.rpartition(".")[2]
        hooks.append(layer.register_forward_pre_hook(_measure(found, f"{kind}-up{block}.{index}"), with_kwargs=True))
    try:
        unet(noisy, times, text)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _measure(found: dict[str, float], key: str) -> Callable[[Attention, tuple[Any, ...], dict[str, Any]], None]:
    def hook(layer: Attention, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        context = kwargs.get("encoder_hidden_states")
        query = layer.head_to_batch_dim(layer.to_q(hidden))
        k = layer.head_to_batch_dim(layer.to_k(hidden if context is None else context))
        rows = layer.get_attention_scores(query, k)
        entropy = -(rows * rows.clamp_min(1e-9).log()).sum(-1).mean()
        found[key] = float(entropy.exp())

    return hook
