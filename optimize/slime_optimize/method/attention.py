"""The cross- and self-attention maps of a Stable-Diffusion-shaped UNet.

Three functions compute the same maps:

    attention_maps   the averaged maps themselves, self-attention as (B,N,N): one variant of an exported UNet
    attend           cross maps, and WAS without an N x N map, for training and prediction:
                     WAS[q] = sum_k A[q,k] c[k] is attention with the cross maps as the values
    weighted_maps    as attend, with the cross maps as further values of the layers' own attention, which is then
                     computed only once: the other variant of an exported UNet

Nothing here knows of noise, images or losses. processors.py reads the maps out of the layers.

Shape suffixes: B batch, C channels, H heads, N = h*w latent pixels (M at another resolution),
T text tokens, D text width, d head width, P parts (the first P tokens).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypeVar

import torch.nn.functional as F
from torch import Tensor

from slime_optimize.layers import Layers
from slime_optimize.method.processors import (
    AttentionStore,
    QueryKeys,
    WeightedSelfAttnProcessor,
    WholeMaps,
    accumulate_pairs,
    capture,
)

# Subtracted from a logit, it leaves nothing of its share of the softmax; it fits into half precision.
_NO_SHARE = 3e4


@dataclass(frozen=True, kw_only=True)
class Maps:
    """Averaged maps: cross (B,P,h,w) eq. 3, self (B,N,N) eq. 5 as [query, key], logits (B,P,h,w)."""

    cross_BPhw: Tensor
    self_BNN: Tensor
    logits_BPhw: Tensor


@dataclass(frozen=True, kw_only=True)
class Attended:
    """One pass: cross maps (eq. 3) and mean raw logits, (B,P,h,w) each, and the UNet's output (B,4,h,w).

    query_keys: scaled queries and keys of each self layer, (B,H,N,d) each.
    """

    cross_BPhw: Tensor
    logits_BPhw: Tensor
    query_keys: tuple[tuple[Tensor, Tensor], ...]
    predicted_B4hw: Tensor

    def accumulate(self, values_BPhw: Tensor) -> Tensor:
        """Return eq. 6 with `values_BPhw` in the place of the cross maps, the mean over the self layers, (B,P,h,w)."""
        return mean([accumulate_pairs(query, key, values_BPhw) for query, key in self.query_keys])


Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class _MapsFunction(Generic[Answer]):
    """One of the three functions: the processor of the self layers, and what is returned of a pass.

    `answer` is given the store, cross maps and mean raw logits (B,P,h,w), and the UNet's output (B,4,h,w).
    """

    reader: type[QueryKeys]
    answer: Callable[[AttentionStore, Tensor, Tensor, Tensor], Answer]

    def __call__(
        self,
        unet: Any,
        latents_B4hw: Tensor,
        timestep: Tensor,
        text_1TD: Tensor,
        num_parts: int,
        layers: Layers,
        *,
        over_parts: bool = False,
        present_BP: Tensor | None = None,
    ) -> Answer:
        """Return the maps of one conditional pass over noised latents (eq. 3, and 5 or 6).

        timestep: int64, () or (B,); text: (1,T,D) or (B,T,D). Cross maps are in [0, 1] and sum to at most 1 over the
        parts; rows of the self map sum to 1. Differentiable with respect to the text. With `over_parts`, the cross maps
        are one softmax over the parts alone, of the mean logits, which is what the published code trains. Parts for
        which present_BP (B,P) is 0, not 1, are 0 everywhere.
        Raises BackboneError for a missing layer, or a self layer that is not at the latents' size.
        """
        # int(): while a graph is traced, sizes are tensors, but the size of maps has to be a constant.
        size = (int(latents_B4hw.shape[-2]), int(latents_B4hw.shape[-1]))
        with capture(unet, AttentionStore(layers=layers, num_parts=num_parts, size=size), self.reader) as store:
            cross_maps = cache(lambda: _cross_maps(store, over_parts, present_BP))
            store.values = cache(lambda: cross_maps()[0].flatten(2).transpose(1, 2))
            (predicted_B4hw,) = unet(latents_B4hw, timestep, encoder_hidden_states=text_1TD, return_dict=False)
        return self.answer(store, *cross_maps(), predicted_B4hw)


def _whole_maps(store: AttentionStore, cross_BPhw: Tensor, logits_BPhw: Tensor, _: Tensor) -> Maps:
    return Maps(cross_BPhw=cross_BPhw, self_BNN=store.self_mean, logits_BPhw=logits_BPhw)


def _attended(store: AttentionStore, cross_BPhw: Tensor, logits_BPhw: Tensor, predicted_B4hw: Tensor) -> Attended:
    pairs = tuple(store.query_key[name] for name in store.layers.self_)
    return Attended(cross_BPhw=cross_BPhw, logits_BPhw=logits_BPhw, query_keys=pairs, predicted_B4hw=predicted_B4hw)


def _weighted(store: AttentionStore, cross_BPhw: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    """Return cross maps and WAS maps (B,P,h,w).

    The attention of self layers before the last cross layer, whose maps are not known there, is computed a second time
    with the maps as its values.
    """
    at_once = [was_BNP.transpose(1, 2).reshape(cross_BPhw.shape) for was_BNP in store.was.values()]
    again = [accumulate_pairs(query, key, cross_BPhw) for query, key in store.query_key.values()]
    return cross_BPhw, mean([*at_once, *again])


attention_maps = _MapsFunction(reader=WholeMaps, answer=_whole_maps)
attend = _MapsFunction(reader=QueryKeys, answer=_attended)
weighted_maps = _MapsFunction(reader=WeightedSelfAttnProcessor, answer=_weighted)


def _cross_maps(store: AttentionStore, over_parts: bool, present_BP: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return cross maps and mean raw logits, (B,P,h,w) each."""
    names = store.layers.cross
    logits = _averaged([store.logits[name] for name in names], store.size)
    if over_parts:
        shared = logits if present_BP is None else logits - _NO_SHARE * (1 - present_BP)[..., None, None]
        return shared.softmax(1), logits
    cross = _averaged([store.cross[name] for name in names], store.size)
    return cross if present_BP is None else cross * present_BP[..., None, None], logits


def _averaged(maps_BMP: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Return the mean (B,P,h,w) of maps of several resolutions, each enlarged bilinearly to `size`."""
    return mean([_enlarged(each, size) for each in maps_BMP])


def _enlarged(map_BMP: Tensor, size: tuple[int, int]) -> Tensor:
    shrink = math.isqrt(size[0] * size[1] // int(map_BMP.shape[1]))
    grid = (size[0] // shrink, size[1] // shrink)
    # Copied, because PyTorch's gradient of the enlargement fails on a transposed view of a batch.
    map_BPhw = map_BMP.transpose(1, 2).contiguous().view(-1, map_BMP.shape[2], *grid)
    return map_BPhw if shrink == 1 else F.interpolate(map_BPhw, size, mode="bilinear", align_corners=False)


def mean(tensors: Sequence[Tensor]) -> Tensor:
    """Return the mean of tensors of one shape. A running sum holds two of them at a time; a stack would hold all."""
    total = tensors[0]
    for each in tensors[1:]:
        total = total + each
    return total / len(tensors) if len(tensors) > 1 else total
