"""Measures which products of a graph suffer most from int8: groups of nodes, ranked by the error on the outputs.

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
import numpy.typing as npt
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from slime_export.graph.inspection import makers
from slime_export.graph.runtimes import OnnxModel

Feeds = Sequence[Mapping[str, npt.NDArray[Any]]]
MOST_GROUPS = 128
_SWITCHES = "switches"


@dataclass(frozen=True, kw_only=True)
class Group:
    """Nodes that were measured together, and the error they cause on the output that suffers most.

    The error is the root mean square of the difference, as a share of the output's own root mean square.
    """

    name: str
    nodes: tuple[str, ...]
    error: float


def ranked(path: Path, quantised: Path, nodes: Sequence[str], feeds: Feeds) -> list[Group]:
    """Return groups of `nodes`, the worst first. `path` is the float model, `quantised` has `nodes` in int8."""
    groups = grouped(nodes)
    with tempfile.TemporaryDirectory(dir=quantised.parent) as scratch:
        switched = OnnxModel(_switched(path, quantised, list(groups.values()), Path(scratch)), weights=Path(scratch))
        errors = np.mean([_errors(switched, feed, len(groups)) for feed in feeds], axis=0)
    pairs = zip(groups.items(), errors, strict=True)
    found = [Group(name=name, nodes=tuple(each), error=float(error)) for (name, each), error in pairs]
    return sorted(found, key=lambda group: -group.error)


def grouped(nodes: Sequence[str], most: int = MOST_GROUPS) -> dict[str, list[str]]:
    """Put each node in a group alone or, where these are more than `most`, together with those of the same scope."""
    depth = max(name.count("/") for name in nodes)
    for kept in range(depth + 1, -1, -1):
        groups: dict[str, list[str]] = {}
        for name in nodes:
            groups.setdefault("/".join(name.split("/")[: kept + 1]), []).append(name)
        if len(groups) <= most:
            break
    return groups


def _errors(switched: OnnxModel, feed: Mapping[str, Any], groups: int) -> list[float]:
    """Return the error of each group alone."""
    exact = switched({**feed, _SWITCHES: np.zeros(groups, bool)})
    scales = {name: float(np.linalg.norm(value.ravel())) or 1.0 for name, value in exact.items()}
    found = []
    for one in np.eye(groups, dtype=bool):
        got = switched({**feed, _SWITCHES: one})
        errors = [float(np.linalg.norm((got[name] - exact[name]).ravel())) / scales[name] for name in exact]
        found.append(max(error if np.isfinite(error) else float("inf") for error in errors))
    return found


def _switched(path: Path, quantised: Path, groups: Sequence[Sequence[str]], folder: Path) -> ModelProto:
    """Return the float graph with an If at each product; weights that lie beside a file are linked into `folder`."""
    floats, ints = _linked(path, folder / "float.data"), _linked(quantised, folder / "int8.data")
    made_by = makers(ints)
    readers = {name: node for node in ints.graph.node for name in node.input}
    by_name = {node.name: node for node in ints.graph.node}
    gates = [f"{_SWITCHES}/{index}" for index in range(len(groups))]
    gate_of = {name: gate for gate, group in zip(gates, groups, strict=True) for name in group}
    nodes = []
    for node in floats.graph.node:
        if node.name in gate_of:
            in_int8 = _branch(_in_int8(by_name[node.name], made_by, readers), f"{node.name}|int8")
            in_float = _branch([node], f"{node.name}|float")
            branches = {"name": node.name, "then_branch": in_int8, "else_branch": in_float}
            nodes.append(helper.make_node("If", [gate_of[node.name]], [node.output[0]], **branches))
        else:
            nodes.append(node)
    ones = numpy_helper.from_array(np.ones(len(groups), np.int64), f"{_SWITCHES}/ones")
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
    """Load the model without the weights in a file beside it; the model names `target`, a link to that file."""
    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                if not target.exists():
                    try:
                        os.link(path.parent / entry.value, target)
                    except OSError:  # another filesystem, or one without links
                        shutil.copyfile(path.parent / entry.value, target)
                entry.value = target.name
    return model


def _in_int8(product: NodeProto, made_by: Mapping[str, NodeProto], readers: Mapping[str, NodeProto]) -> list[NodeProto]:
    """Return the nodes that one product needs in a quantised graph, from its float inputs to its float output."""
    found = []
    for name in product.input:
        # What dequantises an input, after what quantises it (weights are stored quantised).
        after = made_by.get(name)
        if after is not None and after.op_type == "DequantizeLinear":
            before = made_by.get(after.input[0])
            found += [before] if before is not None and before.op_type == "QuantizeLinear" else []
            found.append(after)
    found.append(product)
    rounding = readers.get(product.output[0])
    if rounding is not None and rounding.op_type == "QuantizeLinear":
        found += [rounding, readers[rounding.output[0]]]
    return found


def _branch(nodes: Sequence[NodeProto], name: str) -> GraphProto:
    """Return a graph of copies whose tensors have names of their own; what comes from outside keeps its name."""
    made = {output for node in nodes for output in node.output}
    copies = []
    for node in nodes:
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [f"{name}|{each}" if each in made else each for each in node.input]
        copy.output[:] = [f"{name}|{each}" for each in node.output]
        copies.append(copy)
    output = helper.make_tensor_value_info(copies[-1].output[0], TensorProto.FLOAT, None)
    return helper.make_graph(copies, name, [], [output])
