"""Shape and type of every tensor of an ONNX graph, for one batch size.

onnx's own inference loses its way where sizes are computed from other sizes, as tracing leaves them (it divides no
known numbers). Here one walk through the nodes does both: what is known is computed, the rest is inferred node by node.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, TypeProto, defs, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

Shape = tuple[int, ...]
Array = npt.NDArray[Any]
_SHORT = 64
# What may have short constants for inputs and still says nothing of sizes.
_WEIGHTS = ("QuantizeLinear", "DequantizeLinear")
_DECIDING = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL, TensorProto.FLOAT)


@dataclass(frozen=True, kw_only=True)
class Tensors:
    """By tensor name: its shape, and its element type as onnx numbers them. What could not be inferred is absent."""

    shapes: Mapping[str, Shape]
    types: Mapping[str, int]


def inferred(model: ModelProto, batch: int = 1) -> Tensors:
    """Shapes and types when each free dimension of an input is `batch`. Weights may lie elsewhere; `model` stays."""
    walk = _Walk(model, batch)
    for node in model.graph.node:
        walk.step(node)
    kinds = {name: kind.tensor_type for name, kind in walk.kinds.items() if kind.tensor_type.elem_type}
    whole = {name: kind for name, kind in kinds.items() if kind.HasField("shape") and _is_whole(kind)}
    return Tensors(
        shapes={name: tuple(dim.dim_value for dim in kind.shape.dim) for name, kind in whole.items()},
        types={name: kind.elem_type for name, kind in kinds.items()},
    )


def _is_whole(kind: TypeProto.Tensor) -> bool:
    return all(dim.HasField("dim_value") for dim in kind.shape.dim)


@dataclass
class _Walk:
    """What is known after each node: types of all tensors, values of some."""

    model: ModelProto
    batch: int
    kinds: dict[str, TypeProto] = field(default_factory=dict)
    values: dict[str, TensorProto] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for value in self.model.graph.input:
            kind = value.type.tensor_type
            dims = [dim.dim_value or self.batch for dim in kind.shape.dim]
            self.kinds[value.name] = helper.make_tensor_type_proto(kind.elem_type, dims)
        for weight in self.model.graph.initializer:
            self.kinds[weight.name] = helper.make_tensor_type_proto(weight.data_type, list(weight.dims))
            # Sizes, indices and factors decide shapes; they are short, and weights may not be here.
            here = weight.data_location != TensorProto.EXTERNAL
            if here and weight.data_type in _DECIDING and math.prod(weight.dims) <= _SHORT:
                self.values[weight.name] = weight

    def step(self, node: NodeProto) -> None:
        inputs = [name for name in node.input if name]
        if node.op_type == "Shape" and inputs[0] in self.kinds:
            self._keep(node.output[0], self._shape(node))
        elif inputs and all(name in self.values for name in inputs) and node.op_type not in _WEIGHTS:
            for name, value in zip(node.output, self._computed(node, inputs), strict=True):
                self._keep(name, value)
        elif all(name in self.kinds for name in inputs):
            self._infer(node, inputs)

    def _keep(self, name: str, value: Array) -> None:
        self.values[name] = numpy_helper.from_array(value, name)
        self.kinds[name] = helper.make_tensor_type_proto(self.values[name].data_type, list(value.shape))

    def _shape(self, node: NodeProto) -> Array:
        dims = [dim.dim_value for dim in self.kinds[node.input[0]].tensor_type.shape.dim]
        bounds = {each.name: each.i for each in node.attribute}
        return np.array(dims[bounds.get("start", 0) : bounds.get("end", len(dims))], np.int64)

    def _computed(self, node: NodeProto, inputs: list[str]) -> list[Array]:
        given = [helper.make_value_info(name, self.kinds[name]) for name in inputs]
        outputs = [helper.make_empty_tensor_value_info(name) for name in node.output]
        alone = helper.make_model(
            helper.make_graph([node], "one", given, outputs), opset_imports=self.model.opset_import
        )
        feeds = {name: numpy_helper.to_array(self.values[name]) for name in inputs}
        results: list[Array] = ReferenceEvaluator(alone).run(None, feeds)
        return results

    def _infer(self, node: NodeProto, inputs: list[str]) -> None:
        version = next((each.version for each in self.model.opset_import if each.domain == node.domain), None)
        if version is None or not defs.has(node.op_type, node.domain):
            return
        schema = defs.get_schema(node.op_type, version, node.domain)
        self.kinds.update(
            shape_inference.infer_node_outputs(
                schema,
                node,
                {name: self.kinds[name] for name in inputs},
                {name: self.values[name] for name in inputs if name in self.values},
                opset_imports=list(self.model.opset_import),
                ir_version=self.model.ir_version,
            )
        )
