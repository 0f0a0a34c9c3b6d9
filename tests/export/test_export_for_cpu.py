"""Graphs rewritten for CPUs compute what they computed before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from torch import Tensor, nn

from slime_export.graph import chunking, winograd
from slime_export.graph.inspection import counts
from slime_export.graph.lowering import for_cpu
from slime_export.graph.onnx_export import FILE, Signature, save, write
from slime_export.graph.runtimes import OnnxModel

Array = npt.NDArray[np.float32]


class Convolutions(nn.Module):
    """Two that can be rewritten, one without a bias, between others that cannot."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),  # few channels
            nn.Conv2d(8, 12, 3, padding=1),
            nn.Conv2d(12, 16, 3, padding=1, bias=False),
            nn.Conv2d(16, 16, 3, stride=2, padding=1),
            nn.Conv2d(16, 16, 3, padding=1, groups=2),
            nn.Conv2d(16, 8, 3, padding=2, dilation=2),
            nn.Conv2d(8, 8, 1),
        )

    def forward(self, image: Tensor) -> Tensor:
        answer: Tensor = self.layers(image)
        return answer


class Attention(nn.Module):
    """One whose scores nobody else reads, and one whose weights are given out as well."""

    def forward(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        first = torch.softmax(queries @ keys.transpose(-1, -2), -1) @ keys
        weights = torch.softmax(first @ keys.transpose(-1, -2), -1)
        return weights @ keys, weights.mean(1)


CONVOLUTIONS = Signature(inputs={"IMAGE": (3, 48, 32)}, outputs={"OUT": (8, 24, 16)})
ATTENTION = Signature(inputs={"Q": (2, 37, 8), "K": (2, 21, 8)}, outputs={"OUT": (2, 37, 8), "WEIGHTS": (37, 21)})


def both(model: onnx.ModelProto, before: Path, inputs: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    """What the file `before` answers, and what `model`, made from it, answers."""
    after = before.with_name("after")
    after.mkdir()
    save(model, after)
    return OnnxModel(before)(inputs), OnnxModel(after / FILE)(inputs)


@pytest.mark.parametrize("band_bytes", [10**9, 4 * 36 * 12 * 8 * 2, 1])
@pytest.mark.parametrize("batch", [1, 3])
def test_winograds_convolutions_give_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, band_bytes: int, batch: int
) -> None:
    monkeypatch.setattr(winograd, "BAND_BYTES", band_bytes)
    path = write(Convolutions(), CONVOLUTIONS, tmp_path)
    model = onnx.load(path)
    assert winograd.rewritten(model, least_channels=8, least_tiles=1) == 2
    images = np.random.default_rng(0).normal(size=(batch, 3, 48, 32)).astype(np.float32)
    expected, got = both(model, path, {"IMAGE": images})
    assert np.abs(got["OUT"] - expected["OUT"]).max() < 1e-5 * np.abs(expected["OUT"]).max()
    assert not np.array_equal(got["OUT"], expected["OUT"]), "nothing was rewritten"


def test_winograd_takes_a_quarter_of_the_products(tmp_path: Path) -> None:
    layer = nn.Conv2d(16, 16, 3, padding=1, bias=False)
    path = write(layer, Signature(inputs={"X": (16, 32, 32)}, outputs={"Y": (16, 32, 32)}), tmp_path)
    before = counts(path).macs
    model = onnx.load(path)
    assert winograd.rewritten(model, least_channels=16, least_tiles=64) == 1
    (tmp_path / "after").mkdir()
    after = counts(save(model, tmp_path / "after"))
    transforms = 16 * 8 * 8 * 36 * 36  # tiles of every channel; those of the results are a transposed convolution's
    assert after.macs - transforms == before // 4


@pytest.mark.parametrize(("channels", "tiles"), [(17, 64), (16, 65)])
def test_small_convolutions_stay(tmp_path: Path, channels: int, tiles: int) -> None:
    layer = nn.Conv2d(16, 16, 3, padding=1)
    path = write(layer, Signature(inputs={"X": (16, 32, 32)}, outputs={"Y": (16, 32, 32)}), tmp_path)
    assert winograd.rewritten(onnx.load(path), least_channels=channels, least_tiles=tiles) == 0


def test_attention_in_chunks_of_queries_gives_the_same(tmp_path: Path) -> None:
    path = write(Attention(), ATTENTION, tmp_path)
    model = onnx.load(path)
    assert chunking.rewritten(model, chunk_bytes=4 * 2 * 37 * 21 // 5) == 1  # the other's weights are read twice
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    assert len(products) == 2 + 2 * 6
    rng = np.random.default_rng(0)
    inputs = {name: rng.normal(size=(2, *dims)).astype(np.float32) for name, dims in ATTENTION.inputs.items()}
    expected, got = both(model, path, inputs)
    for name in ATTENTION.outputs:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-5, atol=1e-6)


def test_a_graph_that_gains_nothing_is_left_as_it_is(tmp_path: Path) -> None:
    path = write(Convolutions(), CONVOLUTIONS, tmp_path)
    assert for_cpu(path.parent, tmp_path / "into") == path.parent
    assert not (tmp_path / "into").exists()
