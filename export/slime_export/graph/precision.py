"""Writes fp16 or bf16 into an ONNX graph: weights and operations in the low type, inputs and outputs in fp32.

What stays fp32, and why:
- queries x keys, their scale and the softmax: SD 2.1-768 overflows there in fp16, and bf16's 8 bits blur the peaks;
- InstanceNormalization (as GroupNorm is traced), other means, squares and roots: sums over whole images leave fp16's
  range. LayerNormalization may run in the low type: ONNX defines that it sums in fp32 (its `stash_type`);
- both ends of the graph, before the first product of matrices or convolution and after the last: there maps are
  averaged and constants given out, so that nothing would be gained;
- what is computed from sizes alone.
Nodes that only move data take the type they are given, so that no tensor is cast back and forth.

Own code rather than onnxconverter-common: that knows no bf16, and one walk serves both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import ml_dtypes
import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from slime_export.graph.inspection import PRODUCTS, inferred, makers
from slime_export.graph.onnx_export import BF16_OPSET, MAX_IR

Low = Literal["fp16", "bf16"]

_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_SUMMED = ("InstanceNormalization", "ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2", "Pow", "Sqrt")
_MOVED = (
    *("Reshape", "Transpose", "Slice", "Concat", "Gather", "Unsqueeze", "Squeeze", "Flatten", "Expand", "Split"),
    *("Resize", "Identity", "Pad", "Tile", "DepthToSpace", "SpaceToDepth"),
)
_SCALED = ("Mul", "Div")
_SCORED = (*_SCALED, "Add", "Sub", "Where", "Clip", "Cast")
# Sizes and factors of these stay as they are.
_ONE_INPUT = ("Resize",)


def convert(model: ModelProto, precision: Low) -> ModelProto:
    """Return a copy of the fp32 `model` that computes in `precision` where that is safe; weights must be loaded.

    fp16 keeps the opset; bf16 raises it to BF16_OPSET. Values past fp16's range become its largest ones.
    """
    return _Conversion(model, precision).run()


def attention_scores(model: ModelProto) -> set[str]:
    """Return the outputs of the nodes from queries and keys to the end of each softmax.

    Found backwards from every Softmax: through scales, masks and moves to the product of queries and keys (which are
    constants where they come from a text), and from there through the scales of either side.
    """
    made_by = makers(model)
    found: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "Softmax":
            between, products = _back(node.input, made_by, _SCORED)
            pairs = [each for each in products if each.op_type in ("MatMul", "Einsum")]
            scales = [each for pair in pairs for each in _back(pair.input, made_by, _SCALED)[0]]
            kept = [node, *pairs, *(between if pairs else ()), *(each for each in scales if each.op_type in _SCALED)]
            found.update(output for each in kept for output in each.output)
    return found


def _back(
    names: Iterable[str], made_by: Mapping[str, NodeProto], through: tuple[str, ...]
) -> tuple[list[NodeProto], list[NodeProto]]:
    """Walk back from tensors; return the nodes passed (of types in `through`, or moves), and those where it stopped."""
    passed: dict[str, NodeProto] = {}
    stopped: dict[str, NodeProto] = {}
    waiting = list(names)
    while waiting:
        node = made_by.get(waiting.pop())
        if node is None or node.output[0] in passed:
            continue
        if node.op_type in (*through, *_MOVED):
            passed[node.output[0]] = node
            waiting.extend(node.input)
        else:
            stopped[node.output[0]] = node
    return list(passed.values()), list(stopped.values())


def _ends(model: ModelProto) -> set[str]:
    """Return the outputs of the nodes before the first product, and after the last, on every path through the graph."""
    ends: set[str] = set()
    reached = {value.name for value in model.graph.input}
    for node in model.graph.node:
        if node.op_type not in (*PRODUCTS, "Shape") and reached.intersection(node.input):
            reached.update(node.output)
            ends.update(node.output)
    needed = {value.name for value in model.graph.output}
    for node in reversed(model.graph.node):
        if node.op_type not in PRODUCTS and needed.intersection(node.output):
            needed.update(node.input)
            ends.update(node.output)
    return ends


def _from_data(model: ModelProto) -> set[str]:
    """Return the tensors that depend on what is in the inputs, not only on their sizes."""
    found = {value.name for value in model.graph.input}
    for node in model.graph.node:
        if node.op_type != "Shape" and found.intersection(node.input):
            found.update(node.output)
    return found


@dataclass
class _Conversion:
    """One walk through `model` that notes which tensors exist in which type so far."""

    model: ModelProto
    precision: Low
    names: dict[tuple[str, int], str] = field(default_factory=dict)  # (tensor, type) -> what it is called
    made_in: dict[str, int] = field(default_factory=dict)
    nodes: list[NodeProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        graph = self.model.graph
        self.low: int = _TYPES[self.precision]
        types = inferred(self.model).types
        self.floats = {name for name, kind in types.items() if kind == TensorProto.FLOAT}
        self.weights = {each.name: each for each in graph.initializer}
        self.outputs = {value.name for value in graph.output}
        self.data = _from_data(self.model)
        self.kept = attention_scores(self.model) | _ends(self.model)
        for name in (*self.weights, *(value.name for value in graph.input)):
            self.made_in[name] = TensorProto.FLOAT
            self.names[name, TensorProto.FLOAT] = name
        self.converted: list[TensorProto] = []

    def run(self) -> ModelProto:
        for node in self.model.graph.node:
            self.step(node)
        graph = self.model.graph
        used = {name for node in self.nodes for name in node.input} | self.outputs
        kept = [each for each in graph.initializer if each.name in used]
        result = helper.make_graph(self.nodes, graph.name, graph.input, graph.output, [*kept, *self.converted])
        whole = helper.make_model(result, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)
        return _raised(whole, BF16_OPSET) if self.precision == "bf16" else whole

    def step(self, node: NodeProto) -> None:
        both = {node.input[0] if node.input else "", *node.output} <= self.floats
        if node.op_type == "Cast" and both and node.output[0] not in self.outputs:
            # From fp32 to fp32, as tracing leaves where PyTorch's code says `.to(dtype)`.
            source, target = node.input[0], node.output[0]
            self.made_in[target] = self.made_in[source]
            self.names[target, self.made_in[source]] = self.names[source, self.made_in[source]]
            return
        kind = self._type_of(node)
        fresh = NodeProto()
        fresh.CopyFrom(node)
        fresh.input[:] = [
            self._as(name, kind) if name in self.floats and not (place and node.op_type in _ONE_INPUT) else name
            for place, name in enumerate(node.input)
        ]
        fresh.output[:] = [self._made(name, kind) for name in node.output]
        self.nodes.append(fresh)
        for name in self.outputs.intersection(node.output) & self.floats:
            self._as(name, TensorProto.FLOAT)

    def _made(self, name: str, kind: int) -> str:
        """Name a node's output of this type; the graph's own outputs keep their name for fp32."""
        if name not in self.floats:
            return name
        self.made_in[name] = kind
        self.names[name, kind] = f"{name}_{self.precision}" if kind == self.low and name in self.outputs else name
        return self.names[name, kind]

    def _type_of(self, node: NodeProto) -> int:
        """Return the type this node computes in."""
        if node.op_type in (*_MOVED, "Shape"):
            low = any(self.made_in.get(name) == self.low for name in node.input)
            return self.low if low else TensorProto.FLOAT
        kept = node.op_type in (*_SUMMED, "Cast") or node.output[0] in self.kept or node.output[0] not in self.data
        return TensorProto.FLOAT if kept else self.low

    def _as(self, name: str, kind: int) -> str:
        """Return the name of tensor `name` in type `kind`; it is made where it isn't there yet."""
        if (name, kind) not in self.names:
            is_low = kind == self.low
            target = name if name in self.outputs and not is_low else f"{name}_{self.precision if is_low else 'fp32'}"
            if name in self.weights:
                self.converted.append(_lowered(self.weights[name], target, kind))
            else:
                source = self.names[name, self.made_in[name]]
                self.nodes.append(helper.make_node("Cast", [source], [target], name=f"{target}/Cast", to=kind))
            self.names[name, kind] = target
        return self.names[name, kind]


def _lowered(weight: TensorProto, name: str, kind: int) -> TensorProto:
    values = numpy_helper.to_array(weight)
    if kind == TensorProto.FLOAT16:
        largest = np.finfo(np.float16).max
        return numpy_helper.from_array(values.clip(-largest, largest).astype(np.float16), name)
    raw = values.astype(ml_dtypes.bfloat16).tobytes()
    return helper.make_tensor(name, TensorProto.BFLOAT16, weight.dims, raw, raw=True)


def _raised(model: ModelProto, opset: int) -> ModelProto:
    """Raise the opset of `model`. Of what is traced, only the axes of means have moved since opset 17."""
    for node in model.graph.node:
        for attribute in [each for each in node.attribute if each.name == "axes" and node.op_type.startswith("Reduce")]:
            name = f"{node.output[0]}_axes"
            model.graph.initializer.append(numpy_helper.from_array(np.array(attribute.ints, np.int64), name))
            node.attribute.remove(attribute)
            node.input.append(name)
    for each in model.opset_import:
        each.version = max(each.version, opset) if not each.domain else each.version
    model.ir_version = MAX_IR
    return model
