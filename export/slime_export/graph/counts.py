"""What is in an ONNX file: nodes, multiply-accumulates (MACs) by precision, bytes. Reads shapes, never weights.

One MAC is one multiplication and the addition of its product; only products of matrices and convolutions have any.
Knows nothing of segmenters.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import ModelProto, NodeProto, TensorProto

from slime_export.errors import ExportError
from slime_export.graph.shapes import Shape, inferred

PRODUCTS = ("Conv", "MatMul", "Gemm", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")
# Where the quantised operators keep their second operand; the first is always input 0.
_SECOND = {"QLinearConv": 3, "QLinearMatMul": 3}
_PRECISIONS = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.DOUBLE: "fp64",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "int8",
}
# Shapes and indices, which shape inference reads, are shorter than this; weights are not.
_SMALL_BYTES = 1024


@dataclass(frozen=True, kw_only=True)
class Product:
    """One node that multiplies: its MACs at batch 1, and the type it multiplies in ("fp32", "int8", …)."""

    name: str
    op: str
    macs: int
    precision: str


@dataclass(frozen=True, kw_only=True)
class Counts:
    """A graph in numbers; `bytes` is the file and its external data, MACs are those of one image."""

    nodes: int
    ops: Mapping[str, int]
    macs: int
    macs_by_precision: Mapping[str, int]
    bytes: int

    def share(self, precision: str) -> float:
        """The share of all MACs that run in `precision`, 0 to 1."""
        return self.macs_by_precision.get(precision, 0) / self.macs if self.macs else 0.0


def counts(path: Path) -> Counts:
    """Counts the model in `path`. Raises ExportError where a product's shape can't be inferred."""
    model = without_weights(path)
    by_precision: Counter[str] = Counter()
    for product in products(model):
        by_precision[product.precision] += product.macs
    ops = Counter(node.op_type for node in model.graph.node)
    return Counts(
        nodes=len(model.graph.node),
        ops=dict(ops.most_common()),
        macs=sum(by_precision.values()),
        macs_by_precision=dict(by_precision.most_common()),
        bytes=size(path),
    )


def size(path: Path) -> int:
    """Bytes of the model's file together with the files its weights lie in."""
    graph = onnx.load(str(path), load_external_data=False).graph
    fields = [{each.key: each.value for each in tensor.external_data} for tensor in graph.initializer]
    beside = {entry["location"] for entry in fields if "location" in entry}
    return sum(each.stat().st_size for each in (path, *(path.parent / name for name in beside)))


def without_weights(path: Path) -> ModelProto:
    """The model with its large weights left where they are: enough for shapes, and small."""
    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) > _SMALL_BYTES:
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
    return model


def products(model: ModelProto) -> list[Product]:
    """Every node of `model` that multiplies matrices or convolves, in order. Raises ExportError as `counts`."""
    tensors = inferred(model)
    makers = {output: node for node in model.graph.node for output in node.output}
    found = []
    for node in model.graph.node:
        if node.op_type in PRODUCTS:
            macs, kind = _macs(node, tensors.shapes), _precision(node, tensors.types, makers)
            found.append(Product(name=node.name, op=node.op_type, macs=macs, precision=kind))
    return found


def _macs(node: NodeProto, shapes: Mapping[str, Shape]) -> int:
    """Elements of the output x how many products are summed up for each."""
    second = node.input[_SECOND.get(node.op_type, 1)]
    for name in (node.input[0], second, node.output[0]):
        if name not in shapes:
            raise ExportError(f"node {node.name}: shape of {name} unknown, expected one that follows from the inputs")
    if "Conv" in node.op_type:  # (out, in / groups, kernel…)
        depth = math.prod(shapes[second][1:])
    else:
        transposed = any(each.name == "transA" and each.i for each in node.attribute)
        depth = shapes[node.input[0]][-2 if transposed else -1]
    return math.prod(shapes[node.output[0]]) * depth


def _precision(node: NodeProto, types: Mapping[str, int], makers: Mapping[str, NodeProto]) -> str:
    """A product of two dequantised tensors runs in integers: that is what this pattern means to every runtime."""
    operands = (node.input[0], node.input[_SECOND.get(node.op_type, 1)])
    sources = [makers[name] for name in operands if name in makers]
    if len(sources) == 2 and all(each.op_type == "DequantizeLinear" for each in sources):
        operands = (sources[0].input[0], sources[1].input[0])
    kind = types.get(operands[0], TensorProto.UNDEFINED)
    return _PRECISIONS.get(kind, "other")
