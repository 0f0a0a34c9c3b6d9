"""The formula against its definition and the enlargement against torch, for numpy and torch inputs."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch

from slime_was import accumulate, interpolation_matrix, segment

SIZES = [
    ((16, 16), (64, 64)),
    ((16, 16), (33, 70)),
    ((32, 32), (7, 19)),
    ((5, 9), (200, 3)),
    ((8, 8), (8, 8)),
    ((1, 1), (4, 5)),
]


def random(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).random(shape).astype(np.float32)


def test_accumulate_is_equation_6() -> None:
    cross, self_ = random(3, 6), random(6, 6)
    by_hand = [[sum(self_[q, k] * cross[p, k] for k in range(6)) for q in range(6)] for p in range(3)]
    assert np.allclose(accumulate(cross, self_), by_hand)


def test_accumulate_batches_and_serves_torch() -> None:
    cross, self_ = random(2, 3, 6), random(2, 6, 6)
    batched = accumulate(cross, self_)
    assert np.allclose(batched[1], accumulate(cross[1], self_[1]))
    tensor = accumulate(torch.from_numpy(cross), torch.from_numpy(self_))
    assert np.allclose(tensor.numpy(), batched)


@pytest.mark.parametrize(("size_in", "size_out"), [(4, 4), (4, 9), (9, 4), (1, 3), (3, 1)])
def test_interpolation_rows_sum_to_one(size_in: int, size_out: int) -> None:
    matrix = interpolation_matrix(size_in, size_out)
    assert matrix.shape == (size_out, size_in)
    assert matrix.dtype == np.float32
    assert np.allclose(matrix.sum(1), 1)


@pytest.mark.parametrize(("map_size", "size"), SIZES)
def test_matrices_equal_torch(map_size: tuple[int, int], size: tuple[int, int]) -> None:
    maps = random(4, *map_size)
    ours = interpolation_matrix(map_size[0], size[0]) @ maps @ interpolation_matrix(map_size[1], size[1]).T
    theirs = torch.nn.functional.interpolate(torch.from_numpy(maps)[None], size, mode="bilinear", align_corners=False)
    assert np.allclose(ours, theirs[0].numpy(), atol=1e-5)


@pytest.mark.parametrize(("map_size", "size"), SIZES)
def test_segment_equals_torch(map_size: tuple[int, int], size: tuple[int, int]) -> None:
    maps = torch.from_numpy(random(7, *map_size))
    enlarged = torch.nn.functional.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]
    expected = enlarged.argmax(0).numpy()
    from_numpy, from_torch = segment(maps.numpy(), *size), segment(maps, *size)
    assert from_numpy.dtype == np.uint8
    assert from_numpy.shape == size
    assert from_torch.dtype == torch.uint8
    assert np.array_equal(from_numpy, expected)
    assert np.array_equal(from_torch.numpy(), expected)


@pytest.mark.parametrize("pixels", [40 * 7, 39, 13, 1])
def test_segment_in_many_bands(pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several rows, of most of a row, of less, of a pixel."""
    maps = random(3, 8, 8)
    whole = segment(maps, 50, 40)
    monkeypatch.setattr("slime_was.masks.BAND_ELEMENTS", 3 * pixels)
    assert np.array_equal(segment(maps, 50, 40), whole)
    assert np.array_equal(segment(torch.from_numpy(maps), 50, 40).numpy(), whole)


def test_ties_take_the_lowest_part() -> None:
    assert not segment(np.zeros((3, 4, 4), np.float32), 9, 9).any()
    assert not segment(torch.zeros(3, 4, 4), 9, 9).any()


@pytest.mark.parametrize(
    ("parts", "side", "height", "width", "megabytes"), [(77, 64, 100, 4000, 20), (256, 8, 4, 16_384, 8)]
)
def test_segment_stays_small(parts: int, side: int, height: int, width: int, megabytes: int) -> None:
    """A wide band of a 12-megapixel mask, and the longest lines: enlarged they would be 123 and 67 MB."""
    maps = random(parts, side, side)
    tracemalloc.start()
    segment(maps, height, width)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6 * megabytes


def test_segment_names_wrong_input() -> None:
    with pytest.raises(ValueError, match=r"expected \(parts, h, w\)"):
        segment(np.zeros((4, 4), np.float32), 4, 4)
    with pytest.raises(ValueError, match="at least 1"):
        segment(np.zeros((2, 4, 4), np.float32), 0, 4)
