"""Attention processors that read a UNet's maps, set through diffusers' own `set_attn_processor`.

They leave the UNet's output as it is, except WeightedSelfAttnProcessor. Where a graph is traced, attention is written
out in plain products: a graph has no kernels to choose between, and sizes are constants in it.

Shape suffixes: B batch, H heads, N = h*w latent pixels (M at another resolution), T text tokens, d head width,
P parts (the first P tokens).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from slime_optimize.errors import BackboneError
from slime_optimize.layers import Layers
from slime_optimize.method.precision import single


@dataclass(kw_only=True)
class AttentionStore:
    """What one forward pass over latents of `size` (h, w) leaves behind; `clear` empties it.

    cross and logits: (B,M,P) by layer, means over heads. What is kept of the self layers depends on their processor:
    self_, the sum over layers of the mean over heads, (B,N,N); query_key by layer, scaled, (B,H,N,d) each; was by
    layer, (B,N,P). values: returns what WeightedSelfAttnProcessor accumulates, (B,N,P), once every cross layer has run.
    """

    layers: Layers
    num_parts: int
    size: tuple[int, int]
    values: Callable[[], Tensor] | None = None
    cross: dict[str, Tensor] = field(default_factory=dict)
    logits: dict[str, Tensor] = field(default_factory=dict)
    self_: Tensor | None = None
    query_key: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    was: dict[str, Tensor] = field(default_factory=dict)

    @property
    def self_mean(self) -> Tensor:
        """Mean self-attention map over the self layers, (B,N,N)."""
        assert self.self_ is not None
        count = len(self.layers.self_)
        return self.self_ / count if count > 1 else self.self_

    def clear(self) -> None:
        """Forget the last pass."""
        self.self_ = None
        for kept in (self.cross, self.logits, self.query_key, self.was):
            kept.clear()


class PlainAttnProcessor:
    """Attention as diffusers computes it, with text of batch 1 broadcast over the images' batch."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        assert attention_mask is None, "Stable Diffusion's UNet masks no tokens"
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            _in_heads(to(x), attn.heads) for to, x in ((attn.to_q, hidden_states), (attn.to_k, text), (attn.to_v, text))
        )
        upcast = attn.upcast_attention or attn.upcast_softmax  # SD 2.1-768 overflows in half precision
        if upcast:
            query, key, value = query.float(), key.float(), value.float()
        with single(query.device) if upcast else nullcontext():
            mixed = _side_by_side(self.attend(query, key, value, attn.scale))
        result: Tensor = attn.to_out[1](attn.to_out[0](mixed.to(hidden_states.dtype) if upcast else mixed))
        return result if attn.rescale_output_factor == 1 else result / attn.rescale_output_factor

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Return attention (B,H,N,d) of a query (B,H,N,d), key and value (B,H,M,d); text may have 1 in place of B."""
        return _mixed(query, key, value, scale)


class _TextAttnProcessor(PlainAttnProcessor):
    """Cross-attention written out, traced or not: plain products broadcast over the batch."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        logits_BHMT = (query * scale) @ key.transpose(-1, -2)
        probs_BHMT = logits_BHMT.softmax(-1)  # over all T tokens, not only the parts
        self.keep(logits_BHMT, probs_BHMT)
        return probs_BHMT @ value

    def keep(self, logits_BHMT: Tensor, probs_BHMT: Tensor) -> None:
        """Keep logits and probabilities; only the chosen layers do."""


class _CrossAttnProcessor(_TextAttnProcessor):
    """A cross layer that keeps its parts' maps and logits, means over heads."""

    def __init__(self, name: str, store: AttentionStore) -> None:
        self.name, self.store = name, store

    def keep(self, logits_BHMT: Tensor, probs_BHMT: Tensor) -> None:
        parts = self.store.num_parts
        self.store.cross[self.name] = probs_BHMT[..., :parts].mean(1)
        self.store.logits[self.name] = logits_BHMT[..., :parts].mean(1)


class QueryKeys(PlainAttnProcessor):
    """A self layer that keeps its queries and keys, from which WAS is computed later."""

    def __init__(self, name: str, store: AttentionStore) -> None:
        self.name, self.store = name, store

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        height, width = self.store.size
        if (positions := int(key.shape[-2])) != height * width:
            raise BackboneError(
                f"self-attention layer {self.name}: works on {positions} positions, expected the latents' "
                f"{height}x{width}; choose self layers of the UNet's top level"
            )
        return self.read(query, key, value, scale)

    def read(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Return as `attend`, and leave in the store what is read of this layer."""
        # The scale is folded in here, so that the store alone is enough for WAS.
        self.store.query_key[self.name] = (query * scale, key)
        return _mixed(query, key, value, scale)


class WholeMaps(QueryKeys):
    """A self layer that adds its whole (B,N,N) map to the store's sum: only two maps are in memory at a time."""

    def read(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        probs_BHNN = _probs(query * scale, key)
        mean_BNN = probs_BHNN.mean(1)
        self.store.self_ = mean_BNN if self.store.self_ is None else self.store.self_ + mean_BNN
        return probs_BHNN @ value


class WeightedSelfAttnProcessor(QueryKeys):
    """A self layer that computes WAS with its own attention: the cross maps are further columns of its values.

    Layers that run before every cross map is known keep their queries and keys instead. In the last layer that is read,
    the cross maps are the only values: its output is not attention, and nothing after it may be used.
    """

    def read(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        store = self.store
        if len(store.cross) < len(store.layers.cross):
            return super().read(query, key, value, scale)
        assert store.values is not None
        values_B1NP = store.values().to(value.dtype).unsqueeze(1)
        last = len(store.was) + len(store.query_key) + 1 == len(store.layers.self_)
        if last:
            store.was[self.name] = _mixed(query, key, values_B1NP, scale).mean(1)
            return value
        width = int(value.shape[-1])
        columns = torch.cat([value, values_B1NP.expand(-1, int(value.shape[1]), -1, -1)], dim=-1)
        mixed = _mixed(query, key, columns, scale)
        store.was[self.name] = mixed[..., width:].mean(1)
        return mixed[..., :width]


def accumulate_pairs(query_BHNd: Tensor, key_BHNd: Tensor, cross_BPhw: Tensor) -> Tensor:
    """Return eq. 6 of one layer, from its scaled queries and keys, the mean over heads, (B,P,h,w)."""
    values_BNP = cross_BPhw.flatten(2).transpose(1, 2).to(query_BHNd.dtype)
    if torch.onnx.is_in_onnx_export():
        mixed_BNP = (_probs(query_BHNd, key_BHNd) @ values_BNP.unsqueeze(1)).mean(1)
    else:
        mixed_BNP = _in_groups(query_BHNd, key_BHNd, values_BNP.contiguous())
    return mixed_BNP.transpose(1, 2).reshape(cross_BPhw.shape).to(cross_BPhw.dtype)


def _in_groups(query_BHNd: Tensor, key_BHNd: Tensor, values_BNP: Tensor) -> Tensor:
    """Return attention (B,N,P) with the parts as values, in groups of the head width.

    Only with values as wide as the heads, contiguous for each pixel, does PyTorch use kernels that never hold an N x N
    map.
    """
    heads, width = query_BHNd.shape[1], query_BHNd.shape[-1]
    results = []
    for group_BNp in torch.split(values_BNP, width, dim=-1):
        values = F.pad(group_BNp, (0, width - group_BNp.shape[-1]))
        values_BHNd = values.unsqueeze(1).expand(-1, heads, -1, -1)
        mixed = F.scaled_dot_product_attention(query_BHNd, key_BHNd, values_BHNd, scale=1.0)
        results.append(mixed.mean(1)[..., : group_BNp.shape[-1]])
    return torch.cat(results, dim=-1)


def install(unet: Any, store: AttentionStore, reader: type[QueryKeys]) -> AttentionStore:
    """Set our processors on every attention of `unet` and return `store`, which each forward pass then fills.

    `reader` is the processor of the self layers. Raises BackboneError when a layer does not exist, and in the forward
    pass where a self layer is not at the latents' size.
    """
    layers = store.layers
    layers.validate(unet)

    def processor(name: str) -> PlainAttnProcessor:
        if name in layers.cross:
            return _CrossAttnProcessor(name, store)
        if name in layers.self_:
            return reader(name, store)
        return _unread(name)

    unet.set_attn_processor({key: processor(key.removesuffix(".processor")) for key in unet.attn_processors})
    return store


@contextmanager
def plain(unet: Any) -> Iterator[None]:
    """Set our processors for the length of a with-block, keeping nothing: text of batch 1 is broadcast."""
    with _restored(unet):
        unet.set_attn_processor({key: _unread(key) for key in unet.attn_processors})
        yield


@contextmanager
def capture(unet: Any, store: AttentionStore, reader: type[QueryKeys]) -> Iterator[AttentionStore]:
    """`install` for the length of a with-block; the UNet's own processors come back afterwards."""
    with _restored(unet):
        yield install(unet, store, reader)


@contextmanager
def _restored(unet: Any) -> Iterator[None]:
    before = dict(unet.attn_processors)
    try:
        yield
    finally:
        unet.set_attn_processor(before)


def _unread(name: str) -> PlainAttnProcessor:
    return _TextAttnProcessor() if name.removesuffix(".processor").endswith("attn2") else PlainAttnProcessor()


def _mixed(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    if torch.onnx.is_in_onnx_export():
        return _probs(query * scale, key) @ value
    return F.scaled_dot_product_attention(query, key, value, scale=scale)


def _probs(query: Tensor, key: Tensor) -> Tensor:
    """Return attention probabilities (B,H,N,M) from queries scaled before: they are fewer than the products."""
    return (query @ key.transpose(-1, -2)).softmax(-1)


def _in_heads(features_BNC: Tensor, heads: int) -> Tensor:
    """Return (B,H,N,d) of (B,N,H*d). int(): while a graph is traced, sizes are tensors, but only the batch may vary."""
    pixels, width = int(features_BNC.shape[1]), int(features_BNC.shape[2])
    return features_BNC.reshape(-1, pixels, heads, width // heads).transpose(1, 2)


def _side_by_side(features_BHNd: Tensor) -> Tensor:
    """Return (B,N,H*d) of (B,H,N,d)."""
    _, heads, pixels, width = map(int, features_BHNd.shape)
    return features_BHNd.transpose(1, 2).reshape(-1, pixels, heads * width)
