"""Writes PyTorch modules as ONNX files: traced, constants folded, dead nodes dropped, checked, written whole.

The exporter is PyTorch's tracing one (`dynamo=False`). For an SD-shaped UNet the other one takes 37 s in place of
3 s and gives a graph that runs at the same speed in ONNX Runtime. What it leaves behind is tidied here: constants
that are nodes, and nodes whose inputs are all constants.

Knows nothing of segmenters. A file is one `model.onnx`, with `model.onnx.data` beside it where the weights are too
many for protobuf's 2 GB.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import ModelProto, NodeProto, helper, numpy_helper
from torch import nn

from slime_export.errors import ExportError
from slime_export.graph.inspection import computed

OPSET = 17
# Every ONNX Runtime of the last two years loads these.
MAX_OPSET = 20
# Before it ONNX has no bf16 convolution; a runtime that computes in bf16 is newer anyway.
BF16_OPSET = 22
MAX_IR = 10
# Protobuf refuses 2 GiB; the graph itself needs some of it.
EXTERNAL_OVER = 2_000_000_000
FILE = "model.onnx"
DATA = "model.onnx.data"


@dataclass(frozen=True, kw_only=True)
class Signature:
    """Names of a module's inputs and outputs, each with its dimensions after the batch; -1 is any size."""

    inputs: Mapping[str, tuple[int, ...]]
    outputs: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        assert self.inputs and self.outputs


def write(module: nn.Module, signature: Signature, folder: Path, external_over: int = EXTERNAL_OVER) -> Path:
    """Trace `module` on float32 inputs with a dynamic batch, write `folder`/model.onnx, and return its path.

    `folder` must exist and hold no model. Weights go to model.onnx.data beside it, a plain file, where the model
    has more than `external_over` bytes. Raises ExportError when the file is not what old runtimes load.
    """
    return save(tidy(_traced(module, signature, folder), signature), folder, external_over)


def save(model: ModelProto, folder: Path, external_over: int = EXTERNAL_OVER) -> Path:
    """Write `folder`/model.onnx as `write` does. Weights that go beside the file are taken out of `model`."""
    path = folder / FILE
    # Not ByteSize(), which serialises and so fails for just the models in question.
    external = sum(len(each.raw_data) for each in model.graph.initializer) > external_over
    kept = {"save_as_external_data": True, "location": DATA, "size_threshold": 1024} if external else {}
    onnx.save_model(model, str(path), **kept)
    if external:  # onnx makes this one for its owner alone, and the server may be another
        (folder / DATA).chmod(path.stat().st_mode)
    check(path)
    return path


def check(path: Path) -> None:
    """Raise ExportError unless the file is valid ONNX of an opset and IR version that old runtimes load."""
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise ExportError(f"{path.name}: not valid ONNX ({str(error).splitlines()[0]})") from error
    model = onnx.load(str(path), load_external_data=False)
    opset = max(each.version for each in model.opset_import)
    is_bf16 = any(each.data_type == onnx.TensorProto.BFLOAT16 for each in model.graph.initializer)
    most = BF16_OPSET if is_bf16 else MAX_OPSET
    if opset > most or model.ir_version > MAX_IR:
        raise ExportError(
            f"{path.name}: got opset {opset}, IR {model.ir_version}; expected at most {most} and {MAX_IR}"
        )


def tidy(model: ModelProto, signature: Signature) -> ModelProto:
    """Fold the graph's constants, drop nodes that reach no output, and name its dimensions; `model` itself changes."""
    graph = model.graph
    for node in graph.node:
        node.ClearField("doc_string")
        if node.op_type == "Constant":
            tensor = helper.get_node_attr_value(node, "value")
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
    replace(graph.node, [node for node in graph.node if node.op_type != "Constant"])
    _fold(model)
    prune(model)
    for values, dims in ((graph.input, signature.inputs), (graph.output, signature.outputs)):
        for value in values:
            sizes = [size if size > 0 else f"{value.name}_{axis}" for axis, size in enumerate(dims[value.name], 1)]
            value.CopyFrom(helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, ["batch", *sizes]))
    model.ir_version = min(model.ir_version, MAX_IR)
    return model


def prune(model: ModelProto) -> None:
    """Drop nodes that no output needs, and weights that no node needs."""
    needed = {output.name for output in model.graph.output}
    kept: list[NodeProto] = []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    replace(model.graph.node, reversed(kept))
    replace(model.graph.initializer, [each for each in model.graph.initializer if each.name in needed])


def _traced(module: nn.Module, signature: Signature, folder: Path) -> ModelProto:
    # Batch 2, because PyTorch treats a size of 1 as special.
    examples = tuple(torch.zeros(2, *dims) for dims in signature.inputs.values())
    names = [*signature.inputs, *signature.outputs]
    # On the disk that the model goes to, whose free space was looked at; /tmp may be small, or memory.
    holding = tempfile.TemporaryDirectory(dir=folder, prefix=".traced-")
    with holding as scratch, torch.no_grad(), warnings.catch_warnings():
        # It warns that the exporter is the old one, and that sizes become constants; both are intended.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            examples,
            str(Path(scratch) / FILE),
            dynamo=False,
            opset_version=OPSET,
            input_names=list(signature.inputs),
            output_names=list(signature.outputs),
            dynamic_axes={name: {0: "batch"} for name in names},
        )
        return onnx.load(str(Path(scratch) / FILE))


def _fold(model: ModelProto) -> None:
    """Compute every node whose inputs are all constants, and keep the results that other nodes read."""
    known = {each.name for each in model.graph.initializer}
    constant: list[NodeProto] = []
    rest: list[NodeProto] = []
    for node in model.graph.node:
        foldable = all(not name or name in known for name in node.input) and bool(node.input)
        (constant if foldable else rest).append(node)
        if foldable:
            known.update(node.output)
    read = {name for node in rest for name in node.input} | {output.name for output in model.graph.output}
    results = [name for node in constant for name in node.output if name in read]
    weights = {each.name: each for each in model.graph.initializer}
    for name, value in zip(results, computed(constant, weights, results, model.opset_import), strict=True):
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    replace(model.graph.node, rest)


def replace(field: Any, items: Iterable[Any]) -> None:
    """Replace what a repeated field, such as a graph's nodes, holds by `items`."""
    kept = list(items)
    del field[:]
    field.extend(kept)
