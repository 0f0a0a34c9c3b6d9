"""How well the words of captions find their parts, layer by layer, on validation scenes.

The masks are for measuring alone; no part of the training sees one.

Shape suffixes: B scenes of one class, H heads, N pixels of a layer, T tokens, S image side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import mannwhitneyu
from torch import Tensor
from torch.nn import functional

from slime_backbone.autoencoder import to_tensor
from slime_backbone.scene import COUNTS, KINDS, Scene, scene
from slime_optimize.backbone import Backbone

TIMESTEP = 200


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Of one cross-attention layer, means over its heads and the scenes' pixels.

    first: the share of the first token, 0 to 1. tokens: how many it really looks at, exp of the rows' mean entropy.
    auc: area under the ROC curve of a word's map for its part, 0.5 by chance, the mean over the words of all captions.
    """

    first: float
    tokens: float
    auc: float


@torch.no_grad()
def found_by_words(backbone: Backbone, count: int = COUNTS["validation"], seed: int = 0) -> dict[str, Layer]:
    """Return what each cross layer of the UNet does with the captions of `count` validation scenes of every class."""
    rows: dict[str, list[Layer]] = {}
    for kind in KINDS:
        scenes = [scene(kind, "validation", index) for index in range(count)]
        for name, shares_BNT in _attention(backbone, scenes, seed).items():
            entropy = -(shares_BNT * shares_BNT.clamp_min(1e-9).log()).sum(-1).mean()
            aucs = [auc for each, one in zip(scenes, shares_BNT, strict=True) for auc in _aucs(backbone, each, one)]
            row = Layer(first=float(shares_BNT[..., 0].mean()), tokens=float(entropy.exp()), auc=float(np.mean(aucs)))
            rows.setdefault(name, []).append(row)
    return {
        name: Layer(**{each: float(np.mean([getattr(row, each) for row in of])) for each in ("first", "tokens", "auc")})
        for name, of in rows.items()
    }


def _attention(backbone: Backbone, scenes: list[Scene], seed: int) -> Mapping[str, Tensor]:
    """Return the shares (B,N,T) of the scenes' own captions, means over heads, by the layer's name."""
    latents = backbone.encode(to_tensor(np.stack([each.image for each in scenes])))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed)).to(latents)
    text = torch.cat([backbone.encode_text(each.caption) for each in scenes])
    time = torch.tensor(TIMESTEP, device=backbone.device)
    found, ending = dict[str, Tensor](), ".transformer_blocks.0.attn2"
    hooks = [
        layer.register_forward_pre_hook(_kept(found, name.removesuffix(ending)), with_kwargs=True)
        for name, layer in backbone.unet.named_modules()
        if name.endswith(ending)
    ]
    try:
        backbone.unet(backbone.add_noise(latents, noise, time), time, text)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _kept(found: dict[str, Tensor], name: str) -> Callable[[Any, tuple[Any, ...], dict[str, Any]], None]:
    def hook(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden, text = args[0], kwargs["encoder_hidden_states"]
        query, key = (layer.head_to_batch_dim(made) for made in (layer.to_q(hidden), layer.to_k(text)))
        found[name] = layer.get_attention_scores(query, key).unflatten(0, (len(hidden), -1)).mean(1)

    return hook


def _aucs(backbone: Backbone, drawn: Scene, shares_NT: Tensor) -> Iterator[float]:
    """Yield the area under the curve for every part that the caption tells and the scene shows."""
    side = round(len(shares_NT) ** 0.5)
    for part, tokens in _told(backbone, drawn):
        inside = drawn.mask == drawn.parts.index(part)
        if inside.any():
            map_hw = shares_NT[:, tokens].mean(-1).reshape(1, 1, side, side)
            map_SS = functional.interpolate(map_hw, drawn.mask.shape, mode="bilinear")[0, 0].cpu().numpy()
            positive, negative = map_SS[inside], map_SS[~inside]
            yield float(mannwhitneyu(positive, negative).statistic) / (positive.size * negative.size)


def _told(backbone: Backbone, drawn: Scene) -> Iterator[tuple[str, slice]]:
    """Yield each part that the caption tells, and the places of its two words, as in "red wheel", among the tokens."""
    phrases = drawn.caption.split(" , ")
    for index, phrase in enumerate(phrases):
        colour, _, part = phrase.partition(" ")
        if colour not in ("a", "on"):  # the class, and the backdrop
            first, last = (" , ".join([*phrases[:index], *more]) for more in ([""], [phrase]))
            begin, end = (len(backbone.tokenizer(text.rstrip()).input_ids) - 1 for text in (first, last))
            yield part, slice(begin, end)
