"""What is set on a UNet's attentions, through diffusers' own `set_attn_processor`, to read their maps.

The UNet's output does not change, but for `Riding`. Where a graph is traced, attention is written out: the graph has no
kernels to choose between, and sizes are numbers in it.

Shape suffixes: B batch, H heads, N = h*w latent pixels (M at another resolution), T text tokens, d head width,
P parts (the first P tokens).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from slime_optimize.errors import BackboneError
from slime_optimize.settings import Layers


@dataclass(kw_only=True)
class AttentionStore:
    """What one forward pass over latents of `size` (h, w) leaves behind; emptied by the next `clear`.

    cross and logits: (B,M,P) by layer, means over heads. Of the self layers, as they are read: self_, the sum over
    them of each one's mean over heads, (B,N,N); query_key, scaled, (B,H,N,d) each; ridden, each one's WAS, (B,N,P).
    values: what `Riding` accumulates, (B,N,P), once every cross layer has run.
    """

    layers: Layers
    num_parts: int
    size: tuple[int, int]
    values: Callable[[], Tensor] | None = None
    cross: dict[str, Tensor] = field(default_factory=dict)
    logits: dict[str, Tensor] = field(default_factory=dict)
    self_: Tensor | None = None
    query_key: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    ridden: dict[str, Tensor] = field(default_factory=dict)

    @property
    def self_mean(self) -> Tensor:
        """Over the self layers, (B,N,N)."""
        assert self.self_ is not None
        count = len(self.layers.self_)
        return self.self_ / count if count > 1 else self.self_

    def clear(self) -> None:
        self.self_ = None
        for kept in (self.cross, self.logits, self.query_key, self.ridden):
            kept.clear()


class Plain:
    """diffusers' plain attention, with text of batch 1 broadcast over the images' batch."""

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
        mixed = _side_by_side(self.attend(query, key, value, attn.scale))
        result: Tensor = attn.to_out[1](attn.to_out[0](mixed.to(hidden_states.dtype) if upcast else mixed))
        return result if attn.rescale_output_factor == 1 else result / attn.rescale_output_factor

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """(B,H,N,d), (B,H,M,d), (B,H,M,d) -> (B,H,N,d); text may have 1 in place of B."""
        return _mixed(query, key, value, scale)


class _Text(Plain):
    """Cross-attention written out: plain products broadcast over the batch, traced or not."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        logits_BHMT = (query * scale) @ key.transpose(-1, -2)
        chances_BHMT = logits_BHMT.softmax(-1)  # over all T tokens, not only the parts
        self.keep(logits_BHMT, chances_BHMT)
        return chances_BHMT @ value

    def keep(self, logits_BHMT: Tensor, chances_BHMT: Tensor) -> None:
        """Called with what was computed on the way; only the chosen layers keep it."""


class _Cross(_Text):
    def __init__(self, name: str, store: AttentionStore) -> None:
        self.name, self.store = name, store

    def keep(self, logits_BHMT: Tensor, chances_BHMT: Tensor) -> None:
        parts = self.store.num_parts
        self.store.cross[self.name] = chances_BHMT[..., :parts].mean(1)
        self.store.logits[self.name] = logits_BHMT[..., :parts].mean(1)


class QueryKeys(Plain):
    """A self layer that keeps its queries and keys, which WAS is accumulated from later."""

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
        """As `attend`, and leaves in the store what is read of this layer."""
        # The scale is folded in here, so that the store alone is enough for WAS.
        self.store.query_key[self.name] = (query * scale, key)
        return _mixed(query, key, value, scale)


class WholeMaps(QueryKeys):
    """A self layer that adds its whole (B,N,N) map to the store's sum: of all layers' maps two are in memory."""

    def read(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        chances_BHNN = _chances(query * scale, key)
        mean_BNN = chances_BHNN.mean(1)
        self.store.self_ = mean_BNN if self.store.self_ is None else self.store.self_ + mean_BNN
        return chances_BHNN @ value


class WeightedSelfAttnProcessor(QueryKeys):
    """A self layer through which the cross maps ride as further value columns, where all of them are there.

    The last layer that is read carries them alone: what it gives out is no attention, and nothing after it may be used.
    """

    def read(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        store = self.store
        if len(store.cross) < len(store.layers.cross):
            return super().read(query, key, value, scale)
        assert store.values is not None
        values_B1NP = store.values().to(value.dtype).unsqueeze(1)
        last = len(store.ridden) + len(store.query_key) + 1 == len(store.layers.self_)
        if last:
            store.ridden[self.name] = _mixed(query, key, values_B1NP, scale).mean(1)
            return value
        width = int(value.shape[-1])
        columns = torch.cat([value, values_B1NP.expand(-1, int(value.shape[1]), -1, -1)], dim=-1)
        mixed = _mixed(query, key, columns, scale)
        store.ridden[self.name] = mixed[..., width:].mean(1)
        return mixed[..., :width]


def accumulate_pairs(query_BHNd: Tensor, key_BHNd: Tensor, cross_BPhw: Tensor) -> Tensor:
    """eq. 6 of one layer from its (scaled) queries and keys -> (B,P,h,w), mean over heads."""
    values_BNP = cross_BPhw.flatten(2).transpose(1, 2).to(query_BHNd.dtype)
    if torch.onnx.is_in_onnx_export():
        mixed_BNP = (_chances(query_BHNd, key_BHNd) @ values_BNP.unsqueeze(1)).mean(1)
    else:
        mixed_BNP = _in_groups(query_BHNd, key_BHNd, values_BNP.contiguous())
    return mixed_BNP.transpose(1, 2).reshape(cross_BPhw.shape).to(cross_BPhw.dtype)


def _in_groups(query_BHNd: Tensor, key_BHNd: Tensor, values_BNP: Tensor) -> Tensor:
    """The parts ride as values in groups of the head width: equal widths, each pixel's values side by side, are what
    lets PyTorch use its kernels that never hold an N x N map."""
    heads, width = query_BHNd.shape[1], query_BHNd.shape[-1]
    results = []
    for group_BNp in torch.split(values_BNP, width, dim=-1):
        values = F.pad(group_BNp, (0, width - group_BNp.shape[-1]))
        values_BHNd = values.unsqueeze(1).expand(-1, heads, -1, -1)
        mixed = F.scaled_dot_product_attention(query_BHNd, key_BHNd, values_BHNd, scale=1.0)
        results.append(mixed.mean(1)[..., : group_BNp.shape[-1]])
    return torch.cat(results, dim=-1)


def install(unet: Any, store: AttentionStore, reader: type[QueryKeys]) -> AttentionStore:
    """Sets our processors on every attention of `unet`; each forward then fills `store`. Returns it.

    `reader` is what becomes of the self layers. Raises BackboneError when a layer does not exist, and in the forward
    where a self layer is not at the latents' size. The UNet's output stays what it was, but for Riding.
    """
    layers = store.layers
    layers.validate(unet)

    def processor(name: str) -> Plain:
        if name in layers.cross:
            return _Cross(name, store)
        if name in layers.self_:
            return reader(name, store)
        return _unread(name)

    unet.set_attn_processor({key: processor(key.removesuffix(".processor")) for key in unet.attn_processors})
    return store


@contextmanager
def plain(unet: Any) -> Iterator[None]:
    """Our processors without a store, for the length of a with-block: text of batch 1 broadcasts, nothing is kept."""
    with _put_back(unet):
        unet.set_attn_processor({key: _unread(key) for key in unet.attn_processors})
        yield


@contextmanager
def capture(unet: Any, store: AttentionStore, reader: type[QueryKeys]) -> Iterator[AttentionStore]:
    """`install` for the length of a with-block; the UNet's own processors come back afterwards."""
    with _put_back(unet):
        yield install(unet, store, reader)


@contextmanager
def _put_back(unet: Any) -> Iterator[None]:
    before = dict(unet.attn_processors)
    try:
        yield
    finally:
        unet.set_attn_processor(before)


def _unread(name: str) -> Plain:
    return _Text() if name.removesuffix(".processor").endswith("attn2") else Plain()


def _mixed(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    if torch.onnx.is_in_onnx_export():
        return _chances(query * scale, key) @ value
    return F.scaled_dot_product_attention(query, key, value, scale=scale)


def _chances(query: Tensor, key: Tensor) -> Tensor:
    """(B,H,N,M), from scaled queries, which are fewer than the products."""
    return (query @ key.transpose(-1, -2)).softmax(-1)


def _in_heads(features_BNC: Tensor, heads: int) -> Tensor:
    """(B,N,H*d) -> (B,H,N,d). int(): while a graph is traced sizes are tensors, and only the batch is to vary."""
    pixels, width = int(features_BNC.shape[1]), int(features_BNC.shape[2])
    return features_BNC.reshape(-1, pixels, heads, width // heads).transpose(1, 2)


def _side_by_side(features_BHNd: Tensor) -> Tensor:
    """(B,H,N,d) -> (B,N,H*d)."""
    _, heads, pixels, width = map(int, features_BHNd.shape)
    return features_BHNd.transpose(1, 2).reshape(-1, pixels, heads * width)
