"""Reads an ONNX graph without running it: shapes and types of its tensors, multiply-accumulates (MACs), bytes.

One MAC is one multiplication and the addition of its product; only products of matrices and convolutions have any.

Shapes: onnx's own inference fails where sizes are computed from other sizes, as tracing leaves them (it divides no
known numbers). Here one walk through the nodes does both: what is known is computed, the rest is inferred node by node.
Weights are never read. Knows nothing of segmenters.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, TypeProto, defs, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from slime_export.errors import ExportError

Shape = tuple[int, ...]
Array = npt.NDArray[Any]
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
# Shapes and indices, which shape inference reads, have fewer bytes than this; weights have more.
_SMALL_BYTES = 1024
# The most elements of a constant whose value decides shapes, and the types of such constants.
_SHORT = 64
_DECIDING = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL, TensorProto.FLOAT)
# Operators on weights: their inputs may be short constants that decide no shape.
_WEIGHTS = ("QuantizeLinear", "DequantizeLinear")


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
        """Return the share of all MACs that run in `precision`, 0 to 1."""
        return self.macs_by_precision.get(precision, 0) / self.macs if self.macs else 0.0


@dataclass(frozen=True, kw_only=True)
class Tensors:
    """By tensor name: its shape, and its element type as onnx numbers them. What could not be inferred is absent."""

    shapes: Mapping[str, Shape]
    types: Mapping[str, int]


def counts(path: Path) -> Counts:
    """Count the model in `path`. Raises ExportError where a product's shape cannot be inferred."""
    model = without_weights(path)
    by_precision: Counter[str] = Counter()
    for product in products(model):
        by_precision[product.precision] += product.macs
    return Counts(
        nodes=len(model.graph.node),
        ops=dict(Counter(node.op_type for node in model.graph.node).most_common()),
        macs=sum(by_precision.values()),
        macs_by_precision=dict(by_precision.most_common()),
        bytes=size(path),
    )


def size(path: Path) -> int:
    """Return the bytes of the model's file together with the files that its weights lie in."""
    graph = onnx.load(str(path), load_external_data=False).graph
    entries = [entry for tensor in graph.initializer for entry in tensor.external_data if entry.key == "location"]
    return sum(each.stat().st_size for each in (path, *{path.parent / entry.value for entry in entries}))


def without_weights(path: Path) -> ModelProto:
    """Load the model with its large weights left on the disk: small, and enough for shapes."""
    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) > _SMALL_BYTES:
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
    return model


def makers(model: ModelProto) -> dict[str, NodeProto]:
    """Return tensor -> the node that makes it."""
    return {output: node for node in model.graph.node for output in node.output}


def computed(
    nodes: Sequence[NodeProto], known: Mapping[str, TensorProto], results: Sequence[str], opsets: Any
) -> list[Array]:
    """Return `results`, tensors of nodes that read only what is `known`, by ONNX's own reference implementation.

    It has no size limit, and no other rounding than ONNX says. opsets: the model's `opset_import`.
    """
    if not results:
        return []
    read = {name: known[name] for node in nodes for name in node.input if name in known}
    outputs = [helper.make_empty_tensor_value_info(name) for name in results]
    graph = helper.make_graph(nodes, "constants", [], outputs, list(read.values()))
    values: list[Array] = ReferenceEvaluator(helper.make_model(graph, opset_imports=opsets)).run(None, {})
    return values


def products(model: ModelProto) -> list[Product]:
    """Return every node of `model` that multiplies matrices or convolves, in order. Raises ExportError as `counts`."""
    tensors, made_by = inferred(model), makers(model)
    found = []
    for node in model.graph.node:
        if node.op_type in PRODUCTS:
            macs, kind = _macs(node, tensors.shapes), _precision(node, tensors.types, made_by)
            found.append(Product(name=node.name, op=node.op_type, macs=macs, precision=kind))
    return found


def _macs(node: NodeProto, shapes: Mapping[str, Shape]) -> int:
    """Return the elements of the output times the number of products that are summed for each."""
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


def _precision(node: NodeProto, types: Mapping[str, int], made_by: Mapping[str, NodeProto]) -> str:
    """Return the type a node multiplies in. Every runtime computes a product of two dequantised tensors in integers."""
    operands = (node.input[0], node.input[_SECOND.get(node.op_type, 1)])
    sources = [made_by[name] for name in operands if name in made_by]
    if len(sources) == 2 and all(each.op_type == "DequantizeLinear" for each in sources):
        operands = (sources[0].input[0], sources[1].input[0])
    return _PRECISIONS.get(types.get(operands[0], TensorProto.UNDEFINED), "other")


def inferred(model: ModelProto, batch: int = 1) -> Tensors:
    """Infer shapes and types with `batch` for each free dimension of an input. Weights may lie elsewhere."""
    walk = _Walk(model, batch)
    for node in model.graph.node:
        walk.step(node)
    kinds = {name: kind.tensor_type for name, kind in walk.kinds.items() if kind.tensor_type.elem_type}
    whole = {
        name: kind.shape.dim
        for name, kind in kinds.items()
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim)
    }
    return Tensors(
        shapes={name: tuple(dim.dim_value for dim in dims) for name, dims in whole.items()},
        types={name: kind.elem_type for name, kind in kinds.items()},
    )


@dataclass
class _Walk:
    """What is known after each node: types of all tensors, values of some."""

    model: ModelProto
    batch: int
    kinds: dict[str, TypeProto] = field(default_factory=dict)
    values: dict[str, TensorProto] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.opsets = {each.domain: each.version for each in reversed(self.model.opset_import)}
        for value in self.model.graph.input:
            kind = value.type.tensor_type
            dims = [dim.dim_value or self.batch for dim in kind.shape.dim]
            self.kinds[value.name] = helper.make_tensor_type_proto(kind.elem_type, dims)
        for weight in self.model.graph.initializer:
            self.kinds[weight.name] = helper.make_tensor_type_proto(weight.data_type, list(weight.dims))
            here = weight.data_location != TensorProto.EXTERNAL
            if here and weight.data_type in _DECIDING and math.prod(weight.dims) <= _SHORT:
                self.values[weight.name] = weight

    def step(self, node: NodeProto) -> None:
        inputs = [name for name in node.input if name]
        if node.op_type == "Shape" and inputs[0] in self.kinds:
            dims = [dim.dim_value for dim in self.kinds[inputs[0]].tensor_type.shape.dim]
            bounds = {each.name: each.i for each in node.attribute}
            within = dims[bounds.get("start", 0) : bounds.get("end", len(dims))]
            self._keep(node.output[0], np.array(within, np.int64))
        elif inputs and all(name in self.values for name in inputs) and node.op_type not in _WEIGHTS:
            results = computed([node], self.values, node.output, self.model.opset_import)
            for name, value in zip(node.output, results, strict=True):
                self._keep(name, value)
        elif (
            all(name in self.kinds for name in inputs)
            and node.domain in self.opsets
            and defs.has(node.op_type, node.domain)
        ):
            inferred_kinds = shape_inference.infer_node_outputs(
                defs.get_schema(node.op_type, self.opsets[node.domain], node.domain),
                node,
                {name: self.kinds[name] for name in inputs},
                {name: self.values[name] for name in inputs if name in self.values},
                opset_imports=list(self.model.opset_import),
                ir_version=self.model.ir_version,
            )
            self.kinds.update(inferred_kinds)

    def _keep(self, name: str, value: Array) -> None:
        self.values[name] = numpy_helper.from_array(value, name)
        self.kinds[name] = helper.make_tensor_type_proto(self.values[name].data_type, list(value.shape))
