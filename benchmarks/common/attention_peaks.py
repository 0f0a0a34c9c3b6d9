"""Make random weights behave like trained ones where it matters: attention with peaks, latents of unit variance.

Every attention layer is adjusted during one forward pass, on the tensors that really reach it. Queries and keys that
share a mean would attend to the same pixels everywhere, so the mean is projected out; then each head is scaled until
its scores have a standard deviation of a few units.

Shape suffixes: N pixels, M what is attended to (pixels or tokens), C width, H heads, d head width, h, w latent sides.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

# Standard deviations of scores. Of 4096 pixels, exp(-2.5^2) are still attended to: 8 or so, more where heads differ.
SELF_SPREAD = 2.5
CROSS_SPREAD = 3.0
_ALIKE = 0.9  # how much of the queries the heads of a cross-attention share: independent ones would even out
_SAMPLE = 512  # queries that the spread is measured on


def enlarge_queries(unet: Any, latents_14hw: Tensor, timestep_1: Tensor, text_1TD: Tensor) -> None:
    """Change to_q and to_k of every attention layer of `unet` in place."""
    attentions = [each for each in unet.modules() if isinstance(each, Attention)]
    hooks = [each.register_forward_pre_hook(_set_right, with_kwargs=True) for each in attentions]
    with torch.no_grad():
        unet(latents_14hw, timestep_1, encoder_hidden_states=text_1TD, return_dict=False)
    for hook in hooks:
        hook.remove()


def _set_right(attn: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    hidden_NC, text = arguments[0][0], named.get("encoder_hidden_states")
    seen_MC = hidden_NC if text is None else text[0]
    if text is not None:
        _make_alike(attn.to_q.weight, attn.heads)
        _make_alike(attn.to_k.weight, attn.heads)
    _without_mean(attn.to_q.weight, hidden_NC)
    _without_mean(attn.to_k.weight, seen_MC)
    sample_nC = hidden_NC[:: max(1, len(hidden_NC) // _SAMPLE)]
    query_Hnd, key_HMd = (
        to(x).unflatten(-1, (attn.heads, -1)).transpose(0, 1)
        for to, x in ((attn.to_q, sample_nC), (attn.to_k, seen_MC))
    )
    spread_H = (query_Hnd @ key_HMd.transpose(1, 2) * attn.scale).flatten(1).std(1)
    wanted = SELF_SPREAD if text is None else CROSS_SPREAD
    attn.to_q.weight.unflatten(0, (attn.heads, -1)).mul_((wanted / spread_H)[:, None, None])


def _make_alike(weight_CC: Tensor, heads: int) -> None:
    by_head_HdC = weight_CC.unflatten(0, (heads, -1))
    by_head_HdC.mul_((1 - _ALIKE**2) ** 0.5).add_(_ALIKE * by_head_HdC[:1].clone())


def _without_mean(weight_CC: Tensor, seen_MC: Tensor) -> None:
    """Change the weight so that what the layer answers has no mean."""
    mean_C = seen_MC.mean(0)
    weight_CC.sub_(torch.outer(weight_CC @ mean_C, mean_C) / (mean_C @ mean_C))


def unit_latents(vae: Any, pixels_13SS: Tensor) -> Tensor:
    """Change the encoder so that its scaled latents have mean 0 and deviation 1 in each channel; return those latents.

    A KL encoder's posterior gets almost no variance, as trained encoders have it.
    """
    with torch.no_grad():
        last = vae.quant_conv if hasattr(vae, "quant_conv") else vae.encoder.layers[-1]
        encoded = vae.encode(pixels_13SS)
        latents_14hw: Tensor = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean
        channels = latents_14hw.shape[1]
        mean_4, spread_4 = latents_14hw.mean((0, 2, 3)), latents_14hw.std((0, 2, 3))
        wanted = 1 / float(vae.config.scaling_factor)
        last.bias[:channels] = (last.bias[:channels] - mean_4) / spread_4 * wanted
        last.weight[:channels] *= (wanted / spread_4)[:, None, None, None]
        last.weight[channels:], last.bias[channels:] = 0.0, -18.0
        return (latents_14hw - mean_4[:, None, None]) / spread_4[:, None, None]
