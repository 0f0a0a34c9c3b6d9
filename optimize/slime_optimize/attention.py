"""Reads the cross- and self-attention maps out of a Stable-Diffusion-shaped UNet.

Processors are set through diffusers' own `set_attn_processor`; the UNet's output does not change.
Two ways to the same maps:

    attention_maps   the averaged maps themselves, self-attention as (B,N,N): what export traces
    attend           cross maps, and WAS without an N x N map, for training and prediction:
                     WAS[q] = sum_k A[q,k] c[k] is attention with the cross maps as the values

Knows nothing of noise, images or losses.

Shape suffixes: B batch, C channels, H heads, N = h*w latent pixels (M at another resolution),
T text tokens, D text width, d head width, P parts (the first P tokens).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from slime_optimize.errors import BackboneError, InputError


def _blocks(level: int, attentions: tuple[int, ...], kind: str) -> tuple[str, ...]:
    return tuple(f"up_blocks.{level}.attentions.{i}.transformer_blocks.0.{kind}" for i in attentions)


@dataclass(frozen=True, kw_only=True)
class Layers:
    """The attention layers whose maps are averaged; the default is the paper's choice for SD 2.1."""

    cross: tuple[str, ...] = _blocks(1, (0, 1, 2), "attn2") + _blocks(2, (0, 1), "attn2")
    self_: tuple[str, ...] = _blocks(3, (0, 1, 2), "attn1")

    def __post_init__(self) -> None:
        _check_names("cross", self.cross, ".attn2")
        _check_names("self", self.self_, ".attn1")

    def validate(self, unet: Any) -> None:
        """Raises BackboneError, naming what exists, unless `unet` has every layer."""
        known = [name.removesuffix(".processor") for name in unet.attn_processors]
        for kind, wanted in (("attn2", self.cross), ("attn1", self.self_)):
            there = [name for name in known if name.endswith(kind)]
            for name in wanted:
                if name not in there:
                    raise BackboneError(
                        f"attention layer {name}: not in this UNet; expected one of {_shortened(there)}"
                    )


def _check_names(role: str, names: tuple[str, ...], ending: str) -> None:
    if not names:
        raise InputError(f"{role} layers: got none, expected at least one attention layer name")
    if len(set(names)) != len(names):
        raise InputError(f"{role} layers: a layer is named twice, expected each one once")
    for name in names:
        if not name.endswith(ending):
            raise InputError(f"{role} layer {name}: expected a name that ends in {ending}")


def _shortened(names: list[str]) -> str:
    """`a.attentions.[0,1].transformer_blocks.0.attn2, …`: one entry for each block of the UNet."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name in names:
        block, _, rest = name.partition(".attentions.")
        index, _, tail = rest.partition(".")
        groups.setdefault((block, tail), []).append(index)
    found = [f"{b}.attentions.[{','.join(i)}].{t}" for (b, t), i in groups.items()]
    return ", ".join(found) or "nothing (it has no attention of this kind)"


@dataclass(frozen=True, kw_only=True)
class Maps:
    """Averaged maps: cross (B,P,h,w) eq. 3, self (B,N,N) eq. 5 as [query, key], logits (B,P,h,w)."""

    cross_BPhw: Tensor
    self_BNN: Tensor
    logits_BPhw: Tensor


@dataclass(frozen=True, kw_only=True)
class Attended:
    """One pass: cross maps (B,P,h,w) eq. 3, mean raw logits alike, the UNet's output (B,4,h,w).

    query_keys: of each self layer, scaled, (B,H,N,d) each.
    """

    cross_BPhw: Tensor
    logits_BPhw: Tensor
    query_keys: tuple[tuple[Tensor, Tensor], ...]
    predicted_B4hw: Tensor

    def accumulate(self, values_BPhw: Tensor) -> Tensor:
        """WAS maps, eq. 6, with `values_BPhw` in the cross maps' place: the mean over the self layers, (B,P,h,w)."""
        return _mean([accumulate_pairs(query, key, values_BPhw) for query, key in self.query_keys])


@dataclass(kw_only=True)
class AttentionStore:
    """What one forward pass leaves behind, by layer name; emptied by the next `clear`.

    cross and logits: (B,M,P), means over heads; self_: (B,N,N), mean over heads; query_key: each
    (B,H,N,d). `full_self` chooses between the last two.
    """

    num_parts: int
    full_self: bool
    cross: dict[str, Tensor] = field(default_factory=dict)
    logits: dict[str, Tensor] = field(default_factory=dict)
    self_: dict[str, Tensor] = field(default_factory=dict)
    query_key: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def clear(self) -> None:
        for kept in (self.cross, self.logits, self.self_, self.query_key):
            kept.clear()


class _Processor:
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
            to(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for to, x in ((attn.to_q, hidden_states), (attn.to_k, text), (attn.to_v, text))
        )
        if attn.upcast_attention or attn.upcast_softmax:  # SD 2.1-768 overflows in half precision
            query, key = query.float(), key.float()
        mixed = self.attend(query, key, value.to(query.dtype), attn.scale)
        mixed = mixed.transpose(1, 2).flatten(2).to(hidden_states.dtype)
        result: Tensor = attn.to_out[1](attn.to_out[0](mixed)) / attn.rescale_output_factor
        return result

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """(B,H,N,d), (B,H,M,d), (B,H,M,d) -> (B,H,N,d); text may have 1 in place of B."""
        return F.scaled_dot_product_attention(query, key, value, scale=scale)


class _TextProcessor(_Processor):
    """Cross-attention written out: plain products broadcast over the batch, traced or not."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        logits_BHMT = query @ key.transpose(-1, -2) * scale
        chances_BHMT = logits_BHMT.softmax(-1)  # over all T tokens, not only the parts
        self.keep(logits_BHMT, chances_BHMT)
        return chances_BHMT @ value

    def keep(self, logits_BHMT: Tensor, chances_BHMT: Tensor) -> None:
        """Called with what was computed on the way; only the chosen layers keep it."""


class _CrossProcessor(_TextProcessor):
    def __init__(self, name: str, store: AttentionStore) -> None:
        self.name, self.store = name, store

    def keep(self, logits_BHMT: Tensor, chances_BHMT: Tensor) -> None:
        parts = self.store.num_parts
        self.store.cross[self.name] = chances_BHMT[..., :parts].mean(1)
        self.store.logits[self.name] = logits_BHMT[..., :parts].mean(1)


class _SelfProcessor(_Processor):
    def __init__(self, name: str, store: AttentionStore) -> None:
        self.name, self.store = name, store

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        if not self.store.full_self:
            # The scale is folded in here, so that the store alone is enough for WAS.
            self.store.query_key[self.name] = (query * scale, key)
            return super().attend(query, key, value, scale)
        chances_BHNN = (query @ key.transpose(-1, -2) * scale).softmax(-1)
        self.store.self_[self.name] = chances_BHNN.mean(1)
        return chances_BHNN @ value


def install(unet: Any, layers: Layers, num_parts: int, *, full_self: bool) -> AttentionStore:
    """Sets our processors on every attention of `unet`; each forward then fills the returned store.

    Raises BackboneError when a layer does not exist. The UNet's output stays what it was.
    """
    layers.validate(unet)
    store = AttentionStore(num_parts=num_parts, full_self=full_self)

    def processor(name: str) -> _Processor:
        if name in layers.cross:
            return _CrossProcessor(name, store)
        if name in layers.self_:
            return _SelfProcessor(name, store)
        return _unread(name)

    unet.set_attn_processor({key: processor(key.removesuffix(".processor")) for key in unet.attn_processors})
    return store


def _unread(name: str) -> _Processor:
    return _TextProcessor() if name.removesuffix(".processor").endswith("attn2") else _Processor()


@contextmanager
def plain(unet: Any) -> Iterator[None]:
    """Our processors without a store, for the length of a with-block: text of batch 1 broadcasts, nothing is kept."""
    with _put_back(unet):
        unet.set_attn_processor({key: _unread(key) for key in unet.attn_processors})
        yield


@contextmanager
def capture(unet: Any, layers: Layers, num_parts: int, *, full_self: bool) -> Iterator[AttentionStore]:
    """`install` for the length of a with-block; the UNet's own processors come back afterwards."""
    with _put_back(unet):
        yield install(unet, layers, num_parts, full_self=full_self)


@contextmanager
def _put_back(unet: Any) -> Iterator[None]:
    before = dict(unet.attn_processors)
    try:
        yield
    finally:
        unet.set_attn_processor(before)


def attention_maps(
    unet: Any,
    latents_B4hw: Tensor,
    timestep: Tensor,
    text_1TD: Tensor,
    num_parts: int,
    layers: Layers,
    *,
    over_parts: bool = False,
) -> Maps:
    """One conditional pass over noised latents; eq. 3 and 5.

    timestep: int64, () or (B,); text: (1,T,D) or (B,T,D). Cross maps are in [0, 1] and sum to at
    most 1 over the parts; rows of the self map sum to 1. Differentiable with respect to the text.
    With over_parts, the cross maps are instead one softmax over the parts alone, of the mean logits:
    what the published code trains.
    Raises BackboneError for a missing layer, or a self layer that is not at the latents' size.
    """
    with capture(unet, layers, num_parts, full_self=True) as store:
        unet(latents_B4hw, timestep, encoder_hidden_states=text_1TD, return_dict=False)
    size = _size(latents_B4hw)
    self_maps = [store.self_[name] for name in layers.self_]
    for name, self_BNN in zip(layers.self_, self_maps, strict=True):
        _check_self_size(name, self_BNN.shape[-1], size)
    cross_BPhw, logits_BPhw = _cross_maps(store, layers, size, over_parts)
    return Maps(cross_BPhw=cross_BPhw, self_BNN=_mean(self_maps), logits_BPhw=logits_BPhw)


def attend(
    unet: Any,
    latents_B4hw: Tensor,
    timestep: Tensor,
    text_1TD: Tensor,
    num_parts: int,
    layers: Layers,
    *,
    over_parts: bool = False,
) -> Attended:
    """As `attention_maps`, but with what WAS (eq. 6) is accumulated from in place of the self map."""
    with capture(unet, layers, num_parts, full_self=False) as store:
        (predicted,) = unet(latents_B4hw, timestep, encoder_hidden_states=text_1TD, return_dict=False)
    size = _size(latents_B4hw)
    pairs = tuple(store.query_key[name] for name in layers.self_)
    for name, (_, key_BHNd) in zip(layers.self_, pairs, strict=True):
        _check_self_size(name, key_BHNd.shape[-2], size)
    cross, logits = _cross_maps(store, layers, size, over_parts)
    return Attended(cross_BPhw=cross, logits_BPhw=logits, query_keys=pairs, predicted_B4hw=predicted)


def _cross_maps(
    store: AttentionStore, layers: Layers, size: tuple[int, int], over_parts: bool
) -> tuple[Tensor, Tensor]:
    """Cross maps and mean raw logits, each (B,P,h,w)."""
    logits = _averaged([store.logits[name] for name in layers.cross], size)
    if over_parts:
        return logits.softmax(1), logits
    return _averaged([store.cross[name] for name in layers.cross], size), logits


def accumulate_pairs(query_BHNd: Tensor, key_BHNd: Tensor, cross_BPhw: Tensor) -> Tensor:
    """eq. 6 of one layer from its (scaled) queries and keys -> (B,P,h,w), mean over heads.

    The parts ride as values in groups of the head width: equal widths, each pixel's values side by
    side, are what lets PyTorch use its kernels that never hold an N x N map.
    """
    heads, width = query_BHNd.shape[1], query_BHNd.shape[-1]
    values_BNP = cross_BPhw.flatten(2).transpose(1, 2).to(query_BHNd.dtype).contiguous()
    results = []
    for group_BNp in torch.split(values_BNP, width, dim=-1):
        values = F.pad(group_BNp, (0, width - group_BNp.shape[-1]))
        values_BHNd = values.unsqueeze(1).expand(-1, heads, -1, -1)
        mixed = F.scaled_dot_product_attention(query_BHNd, key_BHNd, values_BHNd, scale=1.0)
        results.append(mixed.mean(1)[..., : group_BNp.shape[-1]])
    return torch.cat(results, dim=-1).transpose(1, 2).reshape(cross_BPhw.shape).to(cross_BPhw.dtype)


def _averaged(maps_BMP: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Maps of several resolutions, each enlarged bilinearly to `size`; their mean (B,P,h,w)."""
    return _mean([_enlarged(each, size) for each in maps_BMP])


def _enlarged(map_BMP: Tensor, size: tuple[int, int]) -> Tensor:
    shrink = math.isqrt(size[0] * size[1] // int(map_BMP.shape[1]))
    grid = (size[0] // shrink, size[1] // shrink)
    # Copied, because PyTorch's gradient of the enlargement fails on a transposed view of a batch.
    map_BPhw = map_BMP.transpose(1, 2).contiguous().view(-1, map_BMP.shape[2], *grid)
    return map_BPhw if shrink == 1 else F.interpolate(map_BPhw, size, mode="bilinear", align_corners=False)


def _size(latents_B4hw: Tensor) -> tuple[int, int]:
    # int(): while a graph is traced, sizes are tensors, and the map size is to be a constant.
    return int(latents_B4hw.shape[-2]), int(latents_B4hw.shape[-1])


def _mean(tensors: list[Tensor]) -> Tensor:
    total = tensors[0]
    for each in tensors[1:]:  # a running sum holds two maps at a time, a stack would hold all
        total = total + each
    return total / len(tensors)


def _check_self_size(name: str, pixels: int, size: tuple[int, int]) -> None:
    if pixels != size[0] * size[1]:
        raise BackboneError(
            f"self-attention layer {name}: works on {pixels} positions, expected the latents' "
            f"{size[0]}x{size[1]}; choose self layers of the UNet's top level"
        )
