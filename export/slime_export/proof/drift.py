"""Where two networks that should answer alike begin to differ: their blocks' outputs, compared in the order they run.

A block is a resnet, a group of attention layers, or a change of resolution, by the name it has in diffusers. In a
graph it is found by its nodes' names, which tracing takes from the modules, so that a graph of another precision has
the same ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import ModelProto
from torch import nn

from slime_export.graph.onnx_export import FILE
from slime_export.proof.difference import difference

Arrays = Mapping[str, npt.NDArray[Any]]
# Of a block's largest value; what is usual stays below it.
NOTED = {"fp32": 1e-3, "fp16": 0.02, "bf16": 0.1, "int8": 0.2}
_KINDS = "resnets|attentions|downsamplers|upsamplers|layers"
_BLOCK = re.compile(rf"(?:/maps/passes\.0/unet|/model)?/(.*?(?:{_KINDS})\.\d+)/")
_MOVES = ("Cast", "QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True, kw_only=True)
class Drift:
    """The first block past a limit, or the one that differs most; `largest` as a share of its largest value."""

    layer: str
    largest: float

    def __str__(self) -> str:
        return f"{self.layer} drifts first ({self.largest:.2g} of its largest value)"


def found(got: Arrays, expected: Arrays, noted: float = NOTED["fp32"]) -> Drift | None:
    """Compares blocks that both have, of the same shape, in `expected`'s order; None where there are none."""
    both = [name for name in expected if name in got and got[name].shape == expected[name].shape]
    gaps = [Drift(layer=name, largest=_largest(got[name], expected[name])) for name in both]
    past = [each for each in gaps if not each.largest <= noted]
    return past[0] if past else max(gaps, key=lambda each: each.largest, default=None)


def _largest(got: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    return difference(got.astype(np.float32), expected.astype(np.float32)).largest


def blocks(model: ModelProto) -> dict[str, str]:
    """Block -> the tensor that leaves it, in the graph's order."""
    last: dict[str, str] = {}
    for node in model.graph.node:
        match = _BLOCK.match(node.name)
        if match and node.op_type not in _MOVES:
            name = match[1].strip("/").replace("/", ".")
            last.pop(name, None)  # so that the order is that of the ends
            last[name] = node.output[0]
    return last


def of_graph(path: Path, inputs: Arrays, run: Callable[[Path], Callable[[Any], Arrays]]) -> dict[str, npt.NDArray[Any]]:
    """What leaves each block of the ONNX file for these inputs; `run` makes a runnable model of a file."""
    with _opened(path) as (opened, names):
        answers = run(opened)(inputs)
    return {block: answers[tensor] for block, tensor in names.items() if tensor in answers}


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """A file beside the model, and its weights, that also gives out what leaves each block."""
    model = onnx.load(str(path), load_external_data=False)
    names = blocks(model)
    there = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(each) for each in {*names.values()} - there)
    opened = path.with_name(f"opened-{FILE}")
    onnx.save_model(model, str(opened))
    try:
        yield opened, names
    finally:
        opened.unlink()


def of_modules(model: nn.Module, run: Callable[[], object]) -> dict[str, npt.NDArray[Any]]:
    """What leaves each block of a PyTorch model the first time it is called in `run`."""
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
