"""The encoder and the UNet as modules that are traced to ONNX: pixels to latents, latents to attention maps.

Thin wrappers: the encoders are the backbone's, and the maps come from `slime_optimize.method.attention`. What depends
on the text and the timestep alone is computed here, once, so that the graph holds it as constants. Everything after
the last map that is read leaves the graph because no output needs it.

Shape suffixes: B batch, S image side, h x w the latents, N = h*w, P parts, T text tokens, D text width.
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


class Encoder(nn.Module):
    """PIXELS (B,3,S,S) float32 in [-1, 1] -> LATENTS (B,4,h,w): the posterior's mean, or the tiny encoder's answer,
    times the scaling factor.

    The same as `Backbone.encode` with `encoder`, which training and evaluation use.
    """

    def __init__(self, backbone: Backbone, encoder: str = "vae") -> None:
        super().__init__()
        self.model = backbone.encoder_model(encoder)
        self.is_tiny = encoder == "tiny"
        self.scaling_factor = float(self.model.config.scaling_factor)

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        encoded = self.model.encode(pixels_B3SS)
        latents: Tensor = encoded.latents if self.is_tiny else encoded.latent_dist.mean
        return latents * self.scaling_factor


class MapsUNet(nn.Module):
    """LATENTS (B,4,h,w) -> CROSS (B,P,h,w), SELF (B,N,N), POSTPROCESS (B,LENGTH + letters of `name`), float32.

    Weighted, it gives ACCUMULATED (B,P,h,w) in place of SELF: eq. 6 without giving out a map of N x N. The segmenter's
    noise is added at its test timestep, then one conditional pass runs, or several whose maps are averaged.
    `backbone` is left as it is and shares its weights.
    """

    vector: Tensor
    text: Tensor
    noise: Tensor

    def __init__(self, segmenter: Segmenter, backbone: Backbone, *, weighted: bool = False, name: str = "") -> None:
        super().__init__()
        text = segmenter.text_embedding.to(backbone.device)
        vector = segmenter.settings.postprocess(backbone.image_size).vector(name)
        self.register_buffer("vector", torch.from_numpy(vector).to(backbone.device)[None])
        self.register_buffer("text", text)
        self.register_buffer("noise", segmenter.noise.to(backbone.device).flatten(0, 1)[None])
        self.maps = _Maps(segmenter, backbone, len(segmenter.parts), CONSTANT_LAYERS, weighted=weighted)

    def forward(self, latents_B4hw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cross_BPhw, attended = self.maps(latents_B4hw, self.text, self.noise)
        return cross_BPhw, attended, self.vector.expand(latents_B4hw.shape[0], -1)

    def runs(self, maps_of: Callable[..., Any], latents_B4hw: Tensor) -> list[tuple[Pass, Any]]:
        """Return each pass with what `maps_of`, a function of slime_optimize.method.attention, reads in it."""
        return self.maps.runs(maps_of, latents_B4hw, self.text, self.noise, None)


class SharedUNet(nn.Module):
    """LATENTS (B,4,h,w), TEXT (B,T,D), NOISE (B,4R,h,w), PART_MASK (B,P) -> CROSS, SELF or ACCUMULATED, float32.

    What `MapsUNet` has baked in is an input: text, the R samples of noise one after the other, and which of the graph's
    P part slots this segmenter uses (1 in PART_MASK); maps of the others mean nothing. `segmenter` is any of those that
    the graph is for.
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
    """Latents, text and noise -> CROSS, and SELF or ACCUMULATED: all passes, averaged.

    `constant`: endings of the names of layers that are folded into constants.
    """

    def __init__(
        self, segmenter: Segmenter, backbone: Backbone, parts: int, constant: tuple[str, ...], *, weighted: bool
    ) -> None:
        super().__init__()
        settings, text = segmenter.settings, segmenter.text_embedding.to(backbone.device)
        self.weighted, self.postprocess = weighted, settings.postprocess(backbone.image_size)
        like = torch.zeros_like(segmenter.noise[:1], device=backbone.device)
        each = passes(settings)
        steps = {one.timestep: torch.tensor(one.timestep, device=backbone.device) for one in each}
        # One copy for each timestep, not for each pass: what is folded depends on nothing else.
        unets = {timestep: _folded(backbone.unet, like, step, text, constant) for timestep, step in steps.items()}
        self.passes = nn.ModuleList(_OnePass(one, settings, parts, backbone, unets[one.timestep]) for one in each)

    def forward(
        self, latents_B4hw: Tensor, text: Tensor, noise: Tensor, present_BP: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        given = (latents_B4hw, text, noise, present_BP)
        if not self.weighted:
            runs = self.runs(attention_maps, *given)
            cross_BPhw = mean([one.oriented(maps.cross_BPhw) for one, maps in runs])
            width = int(cross_BPhw.shape[-1])  # while a graph is traced, sizes are tensors
            return cross_BPhw, mean([one.oriented_self(maps.self_BNN, width) for one, maps in runs])
        # The maps can be values of the self attention of the same pass, unless they are known only after the last
        # pass, or at the end of one.
        if len(self.passes) > 1 or self.postprocess.suppress_first_part:
            return accumulated(self.runs(attend, *given), self.postprocess)
        ((only, (cross_BPhw, was_BPhw)),) = self.runs(weighted_maps, *given)
        return only.oriented(cross_BPhw), only.oriented(was_BPhw)

    def runs(self, maps_of: Callable[..., Any], *given: Tensor | None) -> list[tuple[Pass, Any]]:
        """Return each pass with what `maps_of` reads in it."""
        return [(one.one_pass, one(maps_of, *given)) for one in self.passes if isinstance(one, _OnePass)]


class _OnePass(nn.Module):
    """Clean latents -> what `maps_of` reads in one pass, which may be of the mirrored image."""

    signal: Tensor
    spread: Tensor
    timestep: Tensor

    def __init__(self, one_pass: Pass, settings: Settings, parts: int, backbone: Backbone, unet: Any) -> None:
        super().__init__()
        timestep = torch.tensor(one_pass.timestep, device=backbone.device)
        one = torch.ones(1, 1, 1, 1, device=backbone.device)
        self.one_pass, self.unet, self.num_parts = one_pass, unet, parts
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
        noise_B4hw = noise_BXhw[:, channels * self.one_pass.sample : channels * (self.one_pass.sample + 1)]
        noisy_B4hw = self.signal * self.one_pass.oriented(latents_B4hw) + self.spread * noise_B4hw
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


class _Constant(nn.Module):
    """Stands in place of a layer that always answers the same; batch 1, which broadcasts."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self, *_: Any) -> Tensor:
        return self.value


def _folded(unet: Any, latents_14hw: Tensor, timestep: Tensor, text_1TD: Tensor, constant: tuple[str, ...]) -> Any:
    """Return a copy of `unet`, sharing its weights, with its `constant` layers replaced by their answers to this input.

    The latents do not matter to those layers.
    """
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*unet.parameters(), *unet.buffers())}
    copied = copy.deepcopy(unet, shared)
    answers: dict[str, Tensor] = {}

    def remember(name: str) -> Any:
        return lambda _layer, _inputs, output: answers.__setitem__(name, output)

    layers = {name: layer for name, layer in copied.named_modules() if name.endswith(constant)}
    hooks = [layer.register_forward_hook(remember(name)) for name, layer in layers.items()]
    with torch.no_grad():
        copied(latents_14hw, timestep, encoder_hidden_states=text_1TD, return_dict=False)
    for hook in hooks:
        hook.remove()
    for name, value in answers.items():
        parent, _, leaf = name.rpartition(".")
        setattr(copied.get_submodule(parent), leaf, _Constant(value))
    return copied
