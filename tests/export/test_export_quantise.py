"""int8 graphs: what is in integers, what stays float, and that what hurts most is found and left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exporting import Exported
from torch import nn

from slime_export.errors import ExportError
from slime_export.graph import onnx_export as exporter
from slime_export.graph.inspection import counts
from slime_export.graph.quantisation import Plan, quantised, ranges
from slime_export.graph.runtimes import OnnxModel
from slime_export.graph.sensitivity import grouped, ranked
from slime_export.proof.report import difference


class Layers(nn.Module):
    """Convolutions with a residual between, attention, and one linear layer whose input has an outlier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(4, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.query, self.key, self.fragile, self.last = (nn.Linear(16, 16) for _ in range(4))
        # The first channel sets the range, and does nothing else.
        self.register_buffer("spikes", torch.tensor([20.0] + [1.0] * 15))
        with torch.no_grad():
            self.fragile.weight[:, 0] = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = self.first(x).tanh()
        tokens = (residual + self.second(residual)).flatten(2).transpose(1, 2)
        mixed = (self.query(tokens) @ self.key(tokens).transpose(1, 2) / 4).softmax(-1) @ tokens
        return self.last(self.fragile(mixed * self.spikes))


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    signature = exporter.Signature(inputs={"X": (4, 8, 8)}, outputs={"Y": (64, 16)})
    return exporter.write(Layers(), signature, tmp_path_factory.mktemp("floats"))


@pytest.fixture(scope="module")
def feeds() -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    return [{"X": generator.standard_normal((1, 4, 8, 8)).astype(np.float32)} for _ in range(3)]


def folder(path: Path, name: str = "int8") -> Path:
    (path / name).mkdir()
    return path / name


def test_products_with_weights_run_in_int8_and_attention_does_not(floats: Path, feeds: list, tmp_path: Path) -> None:
    result = quantised(floats, folder(tmp_path), feeds)
    found = counts(result.path)
    attention = 2 * 64 * 64 * 16
    assert found.macs_by_precision["fp32"] == attention
    assert found.share("int8") == pytest.approx(result.share) == 1 - attention / found.macs
    assert result.passed and result.excluded == ()
    assert found.bytes < 0.75 * counts(floats).bytes
    exporter.check(result.path)


def test_answers_are_close_to_float_at_any_batch(floats: Path, feeds: list, tmp_path: Path) -> None:
    got = OnnxModel(quantised(floats, folder(tmp_path), feeds).path)
    for batch in (1, 3):
        inputs = {"X": np.concatenate([each["X"] for each in feeds[:batch]])}
        assert 0 < difference(got(inputs)["Y"], OnnxModel(floats)(inputs)["Y"]).mean < 0.03


def test_what_is_no_product_reads_unrounded_tensors(floats: Path, feeds: list, tmp_path: Path) -> None:
    graph = onnx.load(quantised(floats, folder(tmp_path), feeds).path).graph
    makers = {output: node for node in graph.node for output in node.output}
    (tanh,) = (node for node in graph.node if node.op_type == "Tanh")
    readers = [node.op_type for node in graph.node if tanh.output[0] in node.input]
    assert sorted(readers) == ["Add", "QuantizeLinear"]
    for node in graph.node:
        if node.op_type in ("Conv", "MatMul") and len(node.input) > 2:
            assert {makers[name].op_type for name in node.input} == {"DequantizeLinear"}


def test_what_tensorrt_reads_has_zero_points_of_0_and_float_biases(floats: Path, feeds: list, tmp_path: Path) -> None:
    result = quantised(floats, folder(tmp_path), feeds, symmetric=True)
    graph = onnx.load(result.path).graph
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    pairs = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    zeros = [constants[node.input[2]] for node in pairs]
    assert zeros
    assert all(zero.dtype == np.int8 and not zero.any() for zero in zeros)
    assert result.share == Plan.of(floats).share(Plan.of(floats).macs)
    assert difference(OnnxModel(result.path)(feeds[0])["Y"], OnnxModel(floats)(feeds[0])["Y"]).mean < 0.05


def test_ranges_are_the_extremes_over_all_feeds(floats: Path, feeds: list) -> None:
    low, high = ranges(floats, ["X"], feeds)["X"]
    assert (low, high) == (min(each["X"].min() for each in feeds), max(each["X"].max() for each in feeds))


def test_inputs_that_are_no_numbers_are_refused(floats: Path) -> None:
    with pytest.raises(ExportError, match=r"^calibration: X is not finite, expected numbers"):
        ranges(floats, ["X"], [{"X": np.full((1, 4, 8, 8), np.nan, np.float32)}])


def test_weights_beside_the_file_give_the_same(floats: Path, feeds: list, tmp_path: Path) -> None:
    beside = folder(tmp_path, "beside")
    exporter.save(onnx.load(floats), beside, external_over=0)
    whole = quantised(floats, folder(tmp_path), feeds)
    refused: list[Path] = []

    def passes(path: Path) -> bool:
        refused.append(path)
        return len(refused) == 2

    parted = quantised(
        beside / exporter.FILE, folder(tmp_path, "out"), feeds, passes=passes, least_kept=0, external_over=0
    )
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == ["model.onnx", "model.onnx.data"]
    assert len(parted.excluded) == 1
    again = quantised(beside / exporter.FILE, folder(tmp_path, "again"), feeds, external_over=0)
    np.testing.assert_array_equal(OnnxModel(again.path)(feeds[0])["Y"], OnnxModel(whole.path)(feeds[0])["Y"])


def test_the_node_that_hurts_most_is_ranked_first(floats: Path, feeds: list, tmp_path: Path) -> None:
    result = quantised(floats, folder(tmp_path), feeds)
    groups = ranked(floats, result.path, list(Plan.of(floats).macs), feeds)
    assert groups[0].nodes == ("/fragile/MatMul",)
    assert groups[0].error > 1.5 * groups[1].error > 0
    assert [each.error for each in groups] == sorted((each.error for each in groups), reverse=True)


def test_one_groups_error_is_that_of_quantising_it_alone(floats: Path, feeds: list, tmp_path: Path) -> None:
    result = quantised(floats, folder(tmp_path), feeds)
    groups = ranked(floats, result.path, list(Plan.of(floats).macs), feeds[:1])
    outputs = {path: OnnxModel(path)(feeds[0])["Y"] for path in (floats, result.path)}
    together = np.linalg.norm(outputs[result.path] - outputs[floats]) / np.linalg.norm(outputs[floats])
    # Errors of layers are about independent: their squares add up.
    assert np.sqrt(sum(each.error**2 for each in groups)) == pytest.approx(together, rel=0.5)


def refusing(times: int) -> Callable[[Path], bool]:
    left = iter([False] * times)
    return lambda path: next(left, True)


def test_the_worst_are_left_in_float_until_the_check_passes(floats: Path, feeds: list, tmp_path: Path) -> None:
    result = quantised(floats, folder(tmp_path), feeds, passes=refusing(2), least_kept=0)
    assert result.passed
    assert len(result.excluded) == 2  # 1, then 2
    assert result.excluded[0].nodes == ("/fragile/MatMul",)
    assert counts(result.path).share("int8") == pytest.approx(result.share)


def test_no_more_is_left_out_than_is_allowed(floats: Path, feeds: list, tmp_path: Path) -> None:
    result = quantised(floats, folder(tmp_path), feeds, passes=lambda path: False, least_kept=0.8)
    assert not result.passed
    most = Plan.of(floats)
    assert 0.8 * most.share(most.macs) <= result.share < most.share(most.macs)


def test_nodes_are_grouped_by_scope_where_they_are_too_many() -> None:
    names = ["/a/x/q", "/a/x/k", "/a/y/q", "/b/x/q"]
    assert list(grouped(names, most=4)) == names
    assert grouped(names, most=3) == {"/a/x": ["/a/x/q", "/a/x/k"], "/a/y": ["/a/y/q"], "/b/x": ["/b/x/q"]}
    assert grouped(names, most=1) == {"": names}


def test_without_inputs_nothing_is_calibrated(floats: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"^int8: got no inputs to calibrate on, expected at least one image's$"):
        quantised(floats, tmp_path, [])


def test_a_whole_unet_is_quantised(exported: Exported, tmp_path: Path) -> None:
    latents = [{"LATENTS": np.random.default_rng(0).standard_normal((1, 4, 16, 16)).astype(np.float32)}]
    result = quantised(exported.unet, folder(tmp_path), latents)
    got, expected = OnnxModel(result.path)(latents[0]), OnnxModel(exported.unet)(latents[0])
    assert counts(result.path).share("int8") == pytest.approx(result.share)
    for name, value in expected.items():
        assert difference(got[name], value).mean < 0.05, name
    np.testing.assert_array_equal(got["POSTPROCESS"], expected["POSTPROCESS"])
