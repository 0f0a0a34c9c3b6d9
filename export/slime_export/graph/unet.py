"""The UNet of one segmenter, or of all of a group, as a module from latents to attention maps: what is traced to ONNX.

A thin wrapper: the maps come from `slime_optimize.method.attention`, noise levels from the backbone. What depends on
the text and the timestep alone is computed here, once, so that the graph holds it as constants. Everything after
the last map that is read leaves the graph because no output needs it.

Shape suffixes: B batch, P parts, N = h*w latent pixels, T text tokens, D text width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from slime_optimize.backbone import Backbone
from slime_optimize.method.attention import attend, attention_maps, mean, weighted_maps
from slime_optimize.method.prediction import Pass, accumulated, passes
from slime_optimize.segmenter import Segmenter
from slime_optimize.settings import Settings

# Layers whose input is the text or the timestep and nothing else.
TIMED_LAYERS = (".time_emb_proj",)
CONSTANT_LAYERS = (*TIMED_LAYERS, ".attn2.to_k", ".attn2.to_v")


class MapsUNet(nn.Module):
    """LATENTS (B,4,h,w) -> CROSS (B,P,h,w), SELF (B,N,N), POSTPROCESS (B,LENGTH), all float32.

    Weighted, it gives ACCUMULATED (B,P,h,w) in SELF's place, eq. 6 with no N x N map given out. The segmenter's
    noise is added at its test timestep, then one conditional pass runs, or several whose maps are averaged.
    `backbone` is left as it is and shares its weights.
    """

    vector: Tensor
    text: Tensor
    noise: Tensor

    def __init__(self, segmenter: Segmenter, backbone: Backbone, *, weighted: bool = False) -> None:
        super().__init__()
        text = segmenter.text_embedding.to(backbone.device)
        vector = segmenter.settings.postprocess(backbone.image_size).vector()
        self.register_buffer("vector", torch.from_numpy(vector).to(backbone.device)[None])
        self.register_buffer("text", text)
        self.register_buffer("noise", segmenter.noise.to(backbone.device).flatten(0, 1)[None])
        self.maps = _Maps(segmenter, backbone, len(segmenter.parts), CONSTANT_LAYERS, weighted=weighted)

    def forward(self, latents_B4hw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cross_BPhw, attended = self.maps(latents_B4hw, self.text, self.noise)
        return cross_BPhw, attended, self.vector.expand(latents_B4hw.shape[0], -1)

    def runs(self, maps_of: Callable[..., Any], latents_B4hw: Tensor) -> list[tuple[Pass, Any]]:
        """What `maps_of`, of slime_optimize.method.attention, reads in each pass."""
        return self.maps.runs(maps_of, latents_B4hw, self.text, self.noise, None)


class SharedUNet(nn.Module):
    """LATENTS (B,4,h,w), TEXT (B,T,D), NOISE (B,4R,h,w), PART_MASK (B,P) -> CROSS, SELF or ACCUMULATED, float32.

    What `MapsUNet` has baked in is given with every image, R draws of noise one after the other; the rooms of parts
    that PART_MASK has at 0 hold nothing that counts. `segmenter` is any of those that the graph is for.
    """

    def __init__(self, segmenter: Segmenter, backbone: Backbone, most_parts: int, *, weighted: bool = False) -> None:
        super().__init__()
        self.maps = _Maps(segmenter, backbone, most_parts, TIMED_LAYERS, weighted=weighted)

    def forward(
        self, latents_B4hw: Tensor, text_BTD: Tensor, noise_BXhw: Tensor, present_BP: Tensor
    ) -> tuple[Tensor, Tensor]:
        cross_BPhw, attended = self.maps(latents_B4hw, text_BTD, noise_BXhw, present_BP)
        return cross_BPhw, attended


class _Maps(nn.Module):
    """Latents, text and noise -> CROSS, and SELF or ACCUMULATED: all passes, averaged."""

    def __init__(
        self, segmenter: Segmenter, backbone: Backbone, parts: int, constant: tuple[str, ...], *, weighted: bool
    ) -> None:
        super().__init__()
        settings, text = segmenter.settings, segmenter.text_embedding.to(backbone.device)
        self.weighted, self.postprocess = weighted, settings.postprocess(backbone.image_size)
        like = torch.zeros_like(segmenter.noise[:1], device=backbone.device)
        each = passes(settings)
        steps = {turn.timestep: torch.tensor(turn.timestep, device=backbone.device) for turn in each}
        # One copy for each timestep, not for each pass: what is folded depends on nothing else.
        unets = {timestep: folded(backbone.unet, like, step, text, constant) for timestep, step in steps.items()}
        self.passes = nn.ModuleList(_OnePass(turn, settings, parts, backbone, unets[turn.timestep]) for turn in each)

    def forward(
        self, latents_B4hw: Tensor, text: Tensor, noise: Tensor, present_BP: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        given = (latents_B4hw, text, noise, present_BP)
        return self._weighted(*given) if self.weighted else self._averaged(*given)

    def runs(self, maps_of: Callable[..., Any], *given: Tensor | None) -> list[tuple[Pass, Any]]:
        """What `maps_of` reads in each pass."""
        return [(one.turn, one(maps_of, *given)) for one in self._each()]

    def _averaged(self, *given: Tensor | None) -> tuple[Tensor, Tensor]:
        runs = self.runs(attention_maps, *given)
        cross_BPhw = mean([turn.oriented(maps.cross_BPhw) for turn, maps in runs])
        width = int(cross_BPhw.shape[-1])  # while a graph is traced, sizes are tensors
        return cross_BPhw, mean([turn.oriented_self(maps.self_BNN, width) for turn, maps in runs])

    def _weighted(self, *given: Tensor | None) -> tuple[Tensor, Tensor]:
        first, *others = self._each()
        # Values that are known only after the last pass, or at the end of one, cannot ride along in it.
        if others or self.postprocess.suppress_first_part:
            return accumulated(self.runs(attend, *given), self.postprocess)
        cross_BPhw, was_BPhw = first(weighted_maps, *given)
        return first.turn.oriented(cross_BPhw), first.turn.oriented(was_BPhw)

    def _each(self) -> list[_OnePass]:
        return [one for one in self.passes if isinstance(one, _OnePass)]


class _OnePass(nn.Module):
    """Clean latents -> what `maps_of` reads in one pass, on the pass's own side."""

    signal: Tensor
    spread: Tensor
    timestep: Tensor

    def __init__(self, turn: Pass, settings: Settings, parts: int, backbone: Backbone, unet: Any) -> None:
        super().__init__()
        timestep = torch.tensor(turn.timestep, device=backbone.device)
        one = torch.ones(1, 1, 1, 1, device=backbone.device)
        self.turn, self.unet, self.num_parts = turn, unet, parts
        self.layers, self.over_parts = settings.layers, settings.over_parts
        self.register_buffer("signal", backbone.add_noise(one, 0 * one, timestep))
        self.register_buffer("spread", backbone.add_noise(0 * one, one, timestep))
        self.register_buffer("timestep", timestep)

    def forward(
        self,
        maps_of: Callable[..., Any],
        latents_B4hw: Tensor,
        text: Tensor,
        noise_BXhw: Tensor,
        present_BP: Tensor | None,
    ) -> Any:
        channels = int(latents_B4hw.shape[1])
        noise_B4hw = noise_BXhw[:, channels * self.turn.sample : channels * (self.turn.sample + 1)]
        noisy_B4hw = self.signal * self.turn.oriented(latents_B4hw) + self.spread * noise_B4hw
        return maps_of(
            self.unet,
            noisy_B4hw,
            self.timestep,
            text,
            self.num_parts,
            self.layers,
            over_parts=self.over_parts,
            present_BP=present_BP,
        )


class Constant(nn.Module):
    """Stands where a layer stood whose answer is always the same; batch 1, which broadcasts."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self, *_: Any) -> Tensor:
        return self.value


def folded(
    unet: Any, latents_14hw: Tensor, timestep: Tensor, text_1TD: Tensor, constant: tuple[str, ...] = CONSTANT_LAYERS
) -> Any:
    """A copy of `unet`, sharing its weights, in which the `constant` layers are what they answer to this input."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*unet.parameters(), *unet.buffers())}
    copied = copy.deepcopy(unet, shared)
    layers = {name: layer for name, layer in copied.named_modules() if name.endswith(constant)}
    for name, value in _answers(copied, layers, latents_14hw, timestep, text_1TD).items():
        parent, _, leaf = name.rpartition(".")
        setattr(copied.get_submodule(parent), leaf, Constant(value))
    return copied


def _answers(unet: Any, layers: dict[str, Any], latents: Tensor, timestep: Tensor, text: Tensor) -> dict[str, Tensor]:
    """What each layer answers in one pass; the latents do not matter to these layers."""
    answers: dict[str, Tensor] = {}

    def remember(name: str) -> Any:
        return lambda _layer, _inputs, output: answers.__setitem__(name, output)

    hooks = [layer.register_forward_hook(remember(name)) for name, layer in layers.items()]
    with torch.no_grad():
        unet(latents, timestep, encoder_hidden_states=text, return_dict=False)
    for hook in hooks:
        hook.remove()
    return answers
