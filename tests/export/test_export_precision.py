"""fp16 and bf16 graphs: valid, computing in the low type where they should, and close to fp32."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exporting import Exported
from onnx import ModelProto, NodeProto, TensorProto
from onnx.reference import ReferenceEvaluator
from torch import nn

from slime_export.graph import onnx_export as exporter
from slime_export.graph.inspection import counts, inferred
from slime_export.graph.precision import Low, attention_scores, convert
from slime_export.graph.runtimes import OnnxModel
from slime_export.proof.report import difference

LOWS: tuple[Low, ...] = ("fp16", "bf16")
EVALUATES_BF16 = pytest.mark.skipif(
    tuple(map(int, onnx.__version__.split(".")[:2])) < (1, 23),
    reason="onnx before 1.23 has no products in bf16 in its reference evaluator",
)
TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


class Attention(nn.Module):
    """Normalisation, convolution, and attention whose scores are scaled after the product; two outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.GroupNorm(2, 8)
        self.first, self.conv = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.query, self.key, self.value = (nn.Linear(8, 8, bias=False) for _ in range(3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.conv(torch.nn.functional.silu(self.norm(self.first(x)))).flatten(2).transpose(1, 2)
        query, key, value = self.query(features), self.key(features), self.value(features)
        probs = (query @ key.transpose(1, 2) / 8**0.5 + 0.5).softmax(-1)
        return probs.float(), probs @ value


@pytest.fixture(scope="module")
def attention(tmp_path_factory: pytest.TempPathFactory) -> ModelProto:
    signature = exporter.Signature(inputs={"X": (3, 4, 4)}, outputs={"CHANCES": (16, 16), "MIXED": (16, 8)})
    return onnx.load(exporter.write(Attention(), signature, tmp_path_factory.mktemp("attention")))


@pytest.fixture(scope="module", params=["car_unet", "vae_encoder"])
def whole(request: pytest.FixtureRequest, exported: Exported) -> Path:
    return exported.repository / request.param / "1" / "model.onnx"


def made(model: ModelProto) -> dict[str, NodeProto]:
    return {output: node for node in model.graph.node for output in node.output}


@dataclass(frozen=True, kw_only=True)
class Lowered:
    before: Path
    precision: Low
    model: ModelProto
    types: Mapping[str, int]
    makers: Mapping[str, NodeProto]

    @property
    def low(self) -> int:
        return TYPES[self.precision]


@pytest.fixture(scope="module", params=LOWS)
def lowered(request: pytest.FixtureRequest, whole: Path) -> Lowered:
    model = convert(onnx.load(whole), request.param)
    return Lowered(before=whole, precision=request.param, model=model, types=inferred(model).types, makers=made(model))


def test_converted_models_are_valid_to_the_last_type(lowered: Lowered, tmp_path: Path) -> None:
    onnx.checker.check_model(lowered.model, full_check=True)
    onnx.shape_inference.infer_shapes(lowered.model, check_type=True, strict_mode=True)
    onnx.save(lowered.model, tmp_path / "model.onnx")
    exporter.check(tmp_path / "model.onnx")
    assert 0.5 < counts(tmp_path / "model.onnx").share(lowered.precision) < 1


def test_products_run_low_but_for_scores(lowered: Lowered) -> None:
    types = lowered.types
    readers = defaultdict(list)
    for node in lowered.model.graph.node:
        for name in node.input:
            readers[name].append(node)
    for node in lowered.model.graph.node:
        if node.op_type == "Conv":
            assert {types[name] for name in (*node.input, *node.output)} == {lowered.low}, node.name
        if node.op_type in ("Softmax", "InstanceNormalization"):
            assert types[node.input[0]] == types[node.output[0]] == TensorProto.FLOAT, node.name
        if node.op_type == "MatMul":
            scores = any(each.op_type == "Softmax" for each in after(node, readers))
            assert {types[name] for name in node.input} == {TensorProto.FLOAT if scores else lowered.low}, node.name
            assert scores or "/attn" not in node.name or "/to_" in node.name or from_softmax(node, lowered.makers)


def after(node: NodeProto, readers: Mapping[str, list[NodeProto]]) -> list[NodeProto]:
    """The nodes that read a node's output, and those that read theirs where it only scales."""
    own = readers[node.output[0]]
    return own + [late for each in own if each.op_type in ("Mul", "Div", "Add") for late in after(each, readers)]


def from_softmax(node: NodeProto, makers: Mapping[str, NodeProto]) -> bool:
    source = makers[node.input[0]]
    return source.op_type == "Softmax" or (source.op_type in ("Cast", "Concat") and from_softmax(source, makers))


def test_inputs_and_outputs_stay_as_they_were(lowered: Lowered) -> None:
    before = onnx.load(lowered.before).graph
    assert list(lowered.model.graph.input) == list(before.input)
    assert list(lowered.model.graph.output) == list(before.output)


def test_nothing_is_cast_twice_or_for_nothing(lowered: Lowered) -> None:
    types, makers = lowered.types, lowered.makers
    casts = [node for node in lowered.model.graph.node if node.op_type == "Cast"]
    floats = [node for node in casts if types[node.input[0]] in (TensorProto.FLOAT, lowered.low)]
    assert floats
    for node in floats:
        assert types[node.input[0]] != types[node.output[0]], node.name
        assert node.input[0] not in makers or makers[node.input[0]].op_type != "Cast", node.name
    assert len({(node.input[0], types[node.output[0]]) for node in floats}) == len(floats)


def test_no_weight_is_held_in_both_types_or_left_over(lowered: Lowered) -> None:
    graph = lowered.model.graph
    names = [each.name for each in graph.initializer]
    assert len(set(names)) == len(names)
    read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    assert set(names) <= read
    large = {each.name for each in graph.initializer if np.prod(each.dims) > 100}
    assert not [name for name in large if f"{name}_{lowered.precision}" in large]


def test_fp16_is_half_the_size_and_close_in_onnx_runtime(whole: Path, tmp_path: Path) -> None:
    onnx.save(convert(onnx.load(whole), "fp16"), tmp_path / "model.onnx")
    (name, dims) = ("LATENTS", (2, 4, 16, 16)) if "unet" in str(whole) else ("PIXELS", (2, 3, 64, 64))
    inputs = {name: np.random.default_rng(0).standard_normal(dims).astype(np.float32)}
    expected, got = OnnxModel(whole)(inputs), OnnxModel(tmp_path / "model.onnx")(inputs)
    for each, value in got.items():
        assert value.dtype == np.float32
        assert difference(value, expected[each]).mean < 1e-3, each
        assert difference(value, expected[each]).largest < 0.05, each
    if "unet" in str(whole):
        np.testing.assert_array_equal(got["POSTPROCESS"], expected["POSTPROCESS"])
        np.testing.assert_allclose(got["SELF"].sum(-1), 1, rtol=1e-5)  # the softmax was not rounded


@pytest.mark.parametrize(("precision", "most"), [("fp16", 2e-3), pytest.param("bf16", 2e-2, marks=EVALUATES_BF16)])
def test_small_graphs_compute_the_same_by_the_standards_own_rules(
    attention: ModelProto, precision: Low, most: float
) -> None:
    inputs = {"X": np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)}
    expected = ReferenceEvaluator(attention).run(None, inputs)
    got = ReferenceEvaluator(convert(attention, precision)).run(None, inputs)
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == np.float32
        assert 0 < difference(one, other).largest < most


def test_scores_are_found_through_scales_and_masks(attention: ModelProto) -> None:
    makers = made(attention)
    ops = sorted(makers[name].op_type for name in attention_scores(attention))
    assert ops == ["Add", "Div", "MatMul", "Softmax"]


def test_the_models_own_weights_are_left_alone(attention: ModelProto) -> None:
    before = attention.SerializeToString()
    convert(attention, "bf16")
    assert attention.SerializeToString() == before


def test_values_past_fp16_become_its_largest(attention: ModelProto) -> None:
    model = ModelProto()
    model.CopyFrom(attention)
    weight = next(each for each in model.graph.initializer if each.name == "conv.bias")
    weight.CopyFrom(onnx.numpy_helper.from_array(np.full(8, -1e30, np.float32), "conv.bias"))
    (lowered,) = (each for each in convert(model, "fp16").graph.initializer if each.name == "conv.bias_fp16")
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(lowered), np.full(8, -65504, np.float16))
