"""Which products of a graph suffer most from int8: groups of nodes, ranked by the error on the graph's outputs.

One graph holds every product twice, in float and in int8, with a switch for each group. So one session measures all
groups, each with one run: the error is what the outputs differ by when this group alone is in int8.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from slime_export.graph.calibration import Feeds, session

MOST_GROUPS = 128
_SWITCHES = "switches"


@dataclass(frozen=True, kw_only=True)
class Group:
    """Nodes that were measured together, and the error they cause: of the output that suffers most, its mean square
    root difference as a share of its own root mean square."""

    name: str
    nodes: tuple[str, ...]
    error: float


def ranked(path: Path, quantised: Path, nodes: Sequence[str], feeds: Feeds) -> list[Group]:
    """Groups of `nodes`, the worst first. `path` is the float model, `quantised` the same with `nodes` in int8."""
    groups = grouped(nodes)
    with tempfile.TemporaryDirectory(dir=quantised.parent) as scratch:
        model = _switched(path, quantised, list(groups.values()), Path(scratch))
        running = session(model, Path(scratch))
        errors = np.mean([_errors(running, feed, len(groups)) for feed in feeds], axis=0)
    pairs = zip(groups.items(), errors, strict=True)
    found = [Group(name=name, nodes=tuple(each), error=float(error)) for (name, each), error in pairs]
    return sorted(found, key=lambda group: -group.error)


def grouped(nodes: Sequence[str], most: int = MOST_GROUPS) -> dict[str, list[str]]:
    """Each node alone, or with those whose names have the same beginning, up to a `/`, where they are too many."""
    depth = max(name.count("/") for name in nodes)
    for kept in range(depth + 1, -1, -1):
        groups: dict[str, list[str]] = {}
        for name in nodes:
            groups.setdefault("/".join(name.split("/")[: kept + 1]), []).append(name)
        if len(groups) <= most:
            break
    return groups


def _errors(running: Any, feed: Mapping[str, Any], groups: int) -> list[float]:
    """The error of each group alone."""
    exact = running.run(None, {**feed, _SWITCHES: np.zeros(groups, bool)})
    found = []
    for one in np.eye(groups, dtype=bool):
        outputs = running.run(None, {**feed, _SWITCHES: one})
        found.append(max(_error(got, expected) for got, expected in zip(outputs, exact, strict=True)))
    return found


def _error(got: Any, expected: Any) -> float:
    scale = float(np.linalg.norm(expected.ravel())) or 1.0
    error = float(np.linalg.norm((got - expected).ravel())) / scale
    return error if np.isfinite(error) else float("inf")


def _switched(path: Path, quantised: Path, groups: Sequence[Sequence[str]], folder: Path) -> ModelProto:
    """The float graph with an If at each product; its weights, where they lie beside a file, are linked to `folder`."""
    floats, ints = (_linked(each, folder / name) for each, name in ((path, "float.data"), (quantised, "int8.data")))
    branches = _Branches(ints)
    gate = {name: f"{_SWITCHES}/{index}" for index, group in enumerate(groups) for name in group}
    nodes = [_either(node, branches, gate[node.name]) if node.name in gate else node for node in floats.graph.node]
    ones = numpy_helper.from_array(np.ones(len(groups), np.int64), f"{_SWITCHES}/ones")
    gates = [f"{_SWITCHES}/{index}" for index in range(len(groups))]
    weights = {each.name: each for each in (*ints.graph.initializer, *floats.graph.initializer)}
    graph = helper.make_graph(
        [helper.make_node("Split", [_SWITCHES, ones.name], gates), *nodes],
        "switched",
        [*floats.graph.input, helper.make_tensor_value_info(_SWITCHES, TensorProto.BOOL, [len(groups)])],
        floats.graph.output,
        [*weights.values(), ones],
    )
    return helper.make_model(graph, opset_imports=floats.opset_import, ir_version=floats.ir_version)


def _linked(path: Path, target: Path) -> ModelProto:
    """The model in `path`, without the weights that lie in a file beside it; that file is `target`, too, then."""
    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                if not target.exists():
                    _link(path.parent / entry.value, target)
                entry.value = target.name
    return model


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another filesystem, or one without links
        shutil.copyfile(source, target)


def _either(node: NodeProto, branches: _Branches, gate: str) -> NodeProto:
    """An If that runs `node` in int8 where `gate` is true."""
    alone = NodeProto()
    alone.CopyFrom(node)
    alone.output[0] = f"{node.name}|float"
    then = _branch(branches.of(node), f"{node.name}|int8")
    otherwise = _branch([alone], f"{node.name}|float")
    return helper.make_node("If", [gate], [node.output[0]], name=node.name, then_branch=then, else_branch=otherwise)


def _branch(nodes: Sequence[NodeProto], name: str) -> GraphProto:
    output = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    return helper.make_graph(nodes, name, [], [output])


class _Branches:
    """The nodes that one product needs in a quantised graph, from its float inputs to its float output."""

    def __init__(self, model: ModelProto) -> None:
        self._makers = {output: node for node in model.graph.node for output in node.output}
        self._readers = {name: node for node in model.graph.node for name in node.input}
        self._products = {node.name: node for node in model.graph.node}

    def of(self, node: NodeProto) -> list[NodeProto]:
        product = self._products[node.name]
        found = [each for name in product.input for each in self._behind(name)]
        found.append(product)
        after = self._readers.get(product.output[0])
        if after is not None and after.op_type == "QuantizeLinear":
            found += [after, self._readers[after.output[0]]]
        return _renamed(found, node.name)

    def _behind(self, name: str) -> list[NodeProto]:
        """What dequantises an input, after what quantises it (weights are stored quantised)."""
        node = self._makers.get(name)
        if node is None or node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            return []
        return [*(self._behind(node.input[0]) if node.op_type == "DequantizeLinear" else []), node]


def _renamed(nodes: Sequence[NodeProto], prefix: str) -> list[NodeProto]:
    """Copies whose tensors have names of their own; what comes from outside keeps its name."""
    made = {name for node in nodes for name in node.output}
    copies = []
    for node in nodes:
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [f"{prefix}|{name}" if name in made else name for name in node.input]
        copy.output[:] = [f"{prefix}|{name}" for name in node.output]
        copies.append(copy)
    return copies
