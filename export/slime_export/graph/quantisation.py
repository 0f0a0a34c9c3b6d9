"""Writes int8 into an ONNX graph: products with constant weights, with ranges measured on the user's own inputs.

The form is QDQ (QuantizeLinear and DequantizeLinear around float operators), which ONNX Runtime and TensorRT turn
into integer kernels. Weights are symmetric int8, one scale for each output channel; activations uint8 with a zero
point: with symmetric int8 ones, ONNX Runtime leaves part of the products in float on x86. Convolutions hand on 8 bits,
because their integer kernel has no other output; the other products hand on float. Products of two activations, and
of queries with constant keys, stay float.

What is too sensitive is found by measuring (`slime_export.graph.sensitivity`) and left in float. Knows nothing of
segmenters.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper

from slime_export.errors import ExportError
from slime_export.graph import onnx_export, sensitivity
from slime_export.graph.inspection import inferred, makers, products, without_weights
from slime_export.graph.runtimes import OnnxModel, onnxruntime
from slime_export.graph.sensitivity import Feeds, Group
from slime_optimize.files import write_text

# Of the MACs that can be in int8. With Stable Diffusion's 84 % of all, three quarters of all stay.
LEAST_KEPT = 0.9
FILE = "quantised.json"
Check = Callable[[Path], bool]  # whether a written model is good enough
Range = tuple[float, float]
# The dimensions of a constant second operand that can be int8: filters and matrices. Constants of attention, keys and
# values of a text, have more.
_WEIGHT_DIMENSIONS = {"Conv": 4, "MatMul": 2}


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """The written model, the share of its MACs in int8 (0 to 1), and what was left in float, worst first.

    `passed` is false where the check still failed when no more could be left in float; without a check it is true.
    """

    path: Path
    share: float
    excluded: tuple[Group, ...]
    passed: bool

    def write(self) -> None:
        """Write quantised.json beside the model."""
        told = {"share": self.share, "passed": self.passed, "excluded": [asdict(each) for each in self.excluded]}
        write_text(self.path.parent / FILE, json.dumps(told, indent=2) + "\n")


def quantised(
    path: Path,
    folder: Path,
    feeds: Feeds,
    *,
    passes: Check | None = None,
    least_kept: float = LEAST_KEPT,
    symmetric: bool = False,
    external_over: int = onnx_export.EXTERNAL_OVER,
) -> Quantised:
    """Write `folder`/model.onnx, the fp32 model in `path` in int8, calibrated on `feeds` (inputs by name).

    Where `passes` is given and refuses the written model, groups of nodes are ranked by the error that each one's
    quantisation causes on the outputs, and the worst 1, 2, 4, … for what they save are left in float, until it passes
    or less than `least_kept` of what can be in int8 would be. `symmetric` is what TensorRT reads: int8 activations
    with zero points of 0, and float biases. `folder` must exist and be another than `path`'s.
    Raises ExportError without feeds, or where there is nothing to quantise.
    """
    if not feeds:
        raise ExportError("int8: got no inputs to calibrate on, expected at least one image's")
    plan = Plan.of(path)
    measured = ranges(path, plan.tensors(), feeds)

    def attempt(excluded: Sequence[Group]) -> Quantised:
        left = {name for group in excluded for name in group.nodes}
        nodes = [name for name in plan.macs if name not in left]
        model = _quantised(onnx.load(str(path)), nodes, measured, symmetric)
        (folder / onnx_export.DATA).unlink(missing_ok=True)
        written = onnx_export.save(model, folder, external_over)
        passed = passes is None or passes(written)
        return Quantised(path=written, share=plan.share(nodes), excluded=tuple(excluded), passed=passed)

    result = attempt(())
    if result.passed:
        return result
    ranked = plan.by_error_for_macs(sensitivity.ranked(path, result.path, list(plan.macs), feeds[:1]))
    most = plan.most_excluded(ranked, least_kept)
    doubled = [2**power for power in range(most.bit_length()) if 2**power < most]
    for count in [*doubled, most] if most else []:
        result = attempt(ranked[:count])
        if result.passed:
            break
    return result


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The nodes that can be quantised with their MACs, by name, and all MACs of the graph."""

    model: ModelProto  # without weights
    macs: Mapping[str, int]
    total: int

    @classmethod
    def of(cls, path: Path) -> Plan:
        """Read the model in `path`. Raises ExportError where it has no product with a constant weight."""
        model = without_weights(path)
        macs = {each.name: each.macs for each in products(model)}
        constants = {each.name: len(each.dims) for each in model.graph.initializer}
        chosen = [
            node.name
            for node in model.graph.node
            if node.op_type in _WEIGHT_DIMENSIONS and constants.get(node.input[1]) == _WEIGHT_DIMENSIONS[node.op_type]
        ]
        if not chosen:
            raise ExportError(f"{path.name}: has no product with a constant weight, expected some to quantise")
        return cls(model=model, macs={name: macs[name] for name in chosen}, total=sum(macs.values()))

    def tensors(self) -> list[str]:
        """Return the tensors whose ranges are needed: what these nodes read, and what convolutions give."""
        nodes = [node for node in self.model.graph.node if node.name in self.macs]
        return [name for node in nodes for name in (node.input[0], *(node.output if node.op_type == "Conv" else ()))]

    def share(self, nodes: Iterable[str]) -> float:
        """Return the share of the graph's MACs that these nodes have, 0 to 1."""
        return sum(self.macs[name] for name in nodes) / self.total

    def by_error_for_macs(self, groups: Sequence[Group]) -> list[Group]:
        """Sort by error for each MAC, the most first; errors are squared, as those of many layers add up."""
        return sorted(groups, key=lambda group: -(group.error**2) / sum(self.macs[name] for name in group.nodes))

    def most_excluded(self, ranked: Sequence[Group], least_kept: float) -> int:
        """Return how many of the first groups can stay in float with `least_kept` of these nodes' MACs in int8."""
        out = np.cumsum([sum(self.macs[name] for name in group.nodes) for group in ranked])
        return int((out <= (1 - least_kept) * sum(self.macs.values())).sum())


def ranges(path: Path, tensors: Iterable[str], feeds: Feeds) -> dict[str, Range]:
    """Return the least and the largest value of each of `tensors` over all feeds. Raises ExportError where one is NaN.

    The model's file is never copied: weights that lie beside it are read from there.
    """
    names = list(dict.fromkeys(tensors))
    model = onnx.load(str(path), load_external_data=False)
    ends = [f"{name}/{op}" for name in names for op in ("ReduceMin", "ReduceMax")]
    for end in ends:
        name, _, op = end.rpartition("/")
        model.graph.node.append(helper.make_node(op, [name], [end], keepdims=0))
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(end, TensorProto.FLOAT, []) for end in ends)
    running = OnnxModel(model, weights=path.parent)
    answers = [running(feed) for feed in feeds]
    each_FN2 = np.array([[each[end] for end in ends] for each in answers], np.float64).reshape(-1, len(names), 2)
    if not np.isfinite(each_FN2).all():
        bad = names[int(np.argwhere(~np.isfinite(each_FN2))[0][1])]
        raise ExportError(f"calibration: {bad} is not finite, expected numbers; check the images it was given")
    lows_N, highs_N = each_FN2[..., 0].min(0), each_FN2[..., 1].max(0)
    return {name: (float(low), float(high)) for name, low, high in zip(names, lows_N, highs_N, strict=True)}


def _quantised(model: ModelProto, nodes: Sequence[str], measured: Mapping[str, Range], symmetric: bool) -> ModelProto:
    onnxruntime()  # says what to install, where it is missing
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import add_infer_metadata

    del model.graph.value_info[:]
    types = inferred(model).types
    made = {name for node in model.graph.node for name in node.output}
    model.graph.value_info.extend(
        helper.make_tensor_value_info(name, kind, None) for name, kind in types.items() if name in made
    )
    add_infer_metadata(model)  # or the library copies the model to a file and back, to infer types itself
    as_arrays = {name: (np.float32(low), np.float32(high)) for name, (low, high) in measured.items()}
    quantiser = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=False,  # 7 bits are for CPUs without VNNI, whose sums of 16 bits overflow
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8 if symmetric else QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, as_arrays),
        nodes_to_quantize=list(nodes),
        nodes_to_exclude=[],
        op_types_to_quantize=list(_WEIGHT_DIMENSIONS),
        extra_options={
            "OpTypesToExcludeOutputQuantization": ["MatMul"],
            "ActivationSymmetric": symmetric,
            "QuantizeBias": not symmetric,
        },
    )
    quantiser.quantize_model()
    quantiser.model.topological_sort()
    result: ModelProto = quantiser.model.model
    _give_back_floats(result, set(nodes))
    del result.graph.value_info[:]
    del result.metadata_props[:]
    return result


def _give_back_floats(model: ModelProto, nodes: set[str]) -> None:
    """Let all but the products read unrounded tensors: the library rounds for all, which costs residuals accuracy."""
    made_by = makers(model)
    unrounded: dict[str, str] = {}
    for node in model.graph.node:
        source = made_by.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if source is not None and source.op_type == "QuantizeLinear":
            before = made_by.get(source.input[0])
            if before is None or before.op_type != "Conv" or before.name not in nodes:
                unrounded[node.output[0]] = source.input[0]
    for node in model.graph.node:
        if node.name not in nodes:
            node.input[:] = [unrounded.get(name, name) for name in node.input]
