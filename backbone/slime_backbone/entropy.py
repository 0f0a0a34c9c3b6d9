"""How many tokens attention really looks at: exp of the mean row entropy, per layer.

A self-attention that attends to everything alike (N effective tokens) makes weighted accumulated
self-attention worthless, whatever the denoising loss says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention

WATCHED = (
    "up_blocks.3.attentions.0.transformer_blocks.0.attn1",
    "up_blocks.3.attentions.1.transformer_blocks.0.attn1",
    "up_blocks.2.attentions.2.transformer_blocks.0.attn2",
)


@torch.no_grad()
def effective_tokens(
    unet: UNet2DConditionModel, noisy: torch.Tensor, times: torch.Tensor, text: torch.Tensor
) -> dict[str, float]:
    """Effective number of tokens of the WATCHED layers, by a short name."""
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
