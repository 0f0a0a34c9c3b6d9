"""Cuts attention of an ONNX graph into chunks of queries, so that no scores of all queries by all keys exist at once.

    softmax(Q K') V, row by row: each chunk of Q gives its own rows of the result.

The same sums in the same order, so the same numbers; scores that fit a CPU's cache are also faster to work on. Only
for CPUs: GPUs' runtimes recognise the whole pattern and keep scores on chip.

Shapes: ... batch and heads, Q queries, K keys, D channels.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from slime_export.graph.inspection import Shape, inferred, makers
from slime_export.graph.onnx_export import replace

CHUNK_BYTES = 1 << 25  # of scores, float32
_QUERIES = -2


def rewritten(model: ModelProto, chunk_bytes: int = CHUNK_BYTES) -> int:
    """Cut, in `model` itself, every attention whose scores are larger than `chunk_bytes`; return how many."""
    shapes = inferred(model).shapes
    found = [each for each in _attentions(model) if each.chunks(shapes, chunk_bytes) > 1]
    ends = {each.values.output[0]: each for each in found}
    gone = {node.output[0] for each in found for node in (each.scores, each.softmax)}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if node.output[0] in ends:
            nodes.extend(ends[node.output[0]].cut(shapes, chunk_bytes))
        elif node.output[0] not in gone:
            nodes.append(node)
    for each in found:
        model.graph.initializer.extend(each.bounds(shapes, chunk_bytes))
    replace(model.graph.node, nodes)
    return len(found)


@dataclass(frozen=True, kw_only=True)
class _Attention:
    """The nodes of scores = Q K', its softmax, and values = weights V; no other node reads the first two."""

    scores: NodeProto
    softmax: NodeProto
    values: NodeProto

    def chunks(self, shapes: Mapping[str, Shape], chunk_bytes: int) -> int:
        shape = shapes.get(self.scores.output[0], ())
        return math.ceil(4 * math.prod(shape) / chunk_bytes) if shape else 1

    def bounds(self, shapes: Mapping[str, Shape], chunk_bytes: int) -> Iterator[TensorProto]:
        """Return the constants that say where each chunk begins and ends, and along which axis."""
        shape, chunks = shapes[self.scores.input[0]], self.chunks(shapes, chunk_bytes)
        for each in range(chunks + 1):
            begin = np.array([shape[_QUERIES] * each // chunks], np.int64)
            yield numpy_helper.from_array(begin, self._named(f"from_{each}"))
        yield numpy_helper.from_array(np.array([len(shape) + _QUERIES], np.int64), self._named("axis"))

    def cut(self, shapes: Mapping[str, Shape], chunk_bytes: int) -> Iterator[NodeProto]:
        queries, keys = self.scores.input
        results = []
        for each in range(self.chunks(shapes, chunk_bytes)):
            part, scores, weights, result = (
                self._named(f"{name}_{each}") for name in ("queries", "scores", "weights", "result")
            )
            bounds = [self._named(f"from_{each}"), self._named(f"from_{each + 1}"), self._named("axis")]
            yield self._node("Slice", [queries, *bounds], part)
            yield self._node("MatMul", [part, keys], scores)
            yield self._node("Softmax", [scores], weights, axis=-1)
            yield self._node("MatMul", [weights, self.values.input[1]], result)
            results.append(result)
        axis = len(shapes[queries]) + _QUERIES
        yield helper.make_node("Concat", results, self.values.output, name=self.values.name, axis=axis)

    def _node(self, op: str, inputs: list[str], output: str, **attributes: int) -> NodeProto:
        return helper.make_node(op, inputs, [output], name=output, **attributes)

    def _named(self, name: str) -> str:
        return f"{self.values.output[0]}/chunked/{name}"


def _attentions(model: ModelProto) -> Iterator[_Attention]:
    made_by = makers(model)
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            readers[name].append(node)
    for softmax in model.graph.node:
        if softmax.op_type == "Softmax":
            scores, values = made_by.get(softmax.input[0]), readers[softmax.output[0]]
            alone = scores is not None and len(readers[scores.output[0]]) == len(values) == 1
            if scores is not None and alone and scores.op_type == values[0].op_type == "MatMul":
                yield _Attention(scores=scores, softmax=softmax, values=values[0])
