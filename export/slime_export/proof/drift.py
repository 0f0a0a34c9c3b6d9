"""Finds where two networks that should answer alike begin to differ: their blocks' outputs, in the order they run.

Compared are an fp32 graph with PyTorch's modules, or a lower precision with its fp32 graph, on the first image.

A block is a resnet, a group of attention layers, or a change of resolution, by the name it has in diffusers. In a
graph it is found by its nodes' names, which tracing takes from the modules, so that a graph of another precision has
the same ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import nn

from slime_export.graph.onnx_export import FILE
from slime_export.graph.runtimes import CPU, OnnxModel, providers_for
from slime_export.proof.references import References
from slime_export.proof.report import Drift, difference
from slime_optimize.method.prediction import Predictor
from slime_was.tensors import LATENTS, PIXELS

Arrays = Mapping[str, npt.NDArray[Any]]
# Of a block's largest value; what is usual stays below it.
NOTED = {"fp32": 1e-3, "fp16": 0.02, "bf16": 0.1, "int8": 0.2}
_KINDS = "resnets|attentions|downsamplers|upsamplers|layers"
_BLOCK = re.compile(rf"(?:/maps/passes\.0/unet|/model)?/(.*?(?:{_KINDS})\.\d+)/")
_MOVES = ("Cast", "QuantizeLinear", "DequantizeLinear")


def encoder_from_pytorch(predictor: Predictor, answers: References, encoder: Path) -> Drift | None:
    """Find the drift of the fp32 encoder in the folder `encoder` from PyTorch's."""
    first = answers.first(1)
    model = predictor.backbone.encoder_model(predictor.segmenter.settings.encoder)
    expected = _of_modules(model, lambda: predictor.latents(first.images))
    return found(_of_graph(encoder / FILE, {PIXELS: first.crops_B3SS}), expected)


def unet_from_pytorch(predictor: Predictor, answers: References, unet: Path, inputs: Arrays) -> Drift | None:
    """Find the drift of the fp32 UNet in the folder `unet` from PyTorch's; `inputs` are given beside LATENTS."""
    first = answers.first(1)
    latents = predictor.latents(first.images)
    expected = _of_modules(predictor.backbone.unet, lambda: predictor.maps(latents))
    return found(_of_graph(unet / FILE, {LATENTS: first.tensors[LATENTS], **inputs}), expected)


def from_fp32(answers: References, exact: Path, low: Path, precision: str, *, encoder: bool) -> Drift | None:
    """Find the drift of the network in the folder `low`, of this precision, from the fp32 one in `exact`."""
    first = answers.first(1)
    inputs = {PIXELS: first.crops_B3SS} if encoder else {LATENTS: first.tensors[LATENTS]}
    got = _of_graph(low / FILE, inputs, providers_for(precision))
    return found(got, _of_graph(exact / FILE, inputs), NOTED[precision])


def found(got: Arrays, expected: Arrays, noted: float = NOTED["fp32"]) -> Drift | None:
    """Compare blocks that both have, of the same shape, in `expected`'s order; None where there are none."""
    both = [name for name in expected if name in got and got[name].shape == expected[name].shape]
    pairs = {name: (got[name].astype(np.float32), expected[name].astype(np.float32)) for name in both}
    gaps = [Drift(layer=name, largest=difference(*pair).largest) for name, pair in pairs.items()]
    past = [each for each in gaps if not each.largest <= noted]
    return past[0] if past else max(gaps, key=lambda each: each.largest, default=None)


def _of_graph(path: Path, inputs: Arrays, providers: tuple[str, ...] = CPU) -> Arrays:
    """Return what leaves each block of the ONNX file for these inputs."""
    model = onnx.load(str(path), load_external_data=False)
    blocks: dict[str, str] = {}  # the tensor that leaves each, in the graph's order
    for node in model.graph.node:
        match = _BLOCK.match(node.name)
        if match and node.op_type not in _MOVES:
            name = match[1].strip("/").replace("/", ".")
            blocks.pop(name, None)  # so that the order is that of the ends
            blocks[name] = node.output[0]
    there = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(each) for each in {*blocks.values()} - there)
    answers = OnnxModel(model, providers, weights=path.parent)(inputs)
    return {block: answers[tensor] for block, tensor in blocks.items() if tensor in answers}


def _of_modules(model: nn.Module, run: Callable[[], object]) -> Arrays:
    """Return what leaves each block of a PyTorch model the first time it is called in `run`."""
    kept: dict[str, npt.NDArray[Any]] = {}

    def remember(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            kept.setdefault(name, tensor.detach().cpu().numpy())

        return hook

    modules = {name: module for name, module in model.named_modules() if _BLOCK.fullmatch(f"/{name}/")}
    hooks = [module.register_forward_hook(remember(name)) for name, module in modules.items()]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return kept
