"""Fitting squashes to the square, keeps values in range and never invents part numbers."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from slime_image import fit, fit_mask


def test_same_size_is_only_normalised() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    pixels = fit(image, 8)
    assert pixels.dtype == np.float32
    assert pixels.flags.c_contiguous
    assert np.array_equal(np.rint((pixels + 1) * 127.5).astype(np.uint8), image.transpose(2, 0, 1))
    assert fit(np.array([[[0, 255, 0]]], np.uint8), 1).ravel().tolist() == [-1.0, 1.0, -1.0]


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 100, 3), (200, 50, 3)])
def test_any_size_is_squashed(shape: tuple[int, int, int]) -> None:
    pixels = fit(np.random.default_rng(1).integers(0, 256, shape, np.uint8), 16)
    assert pixels.shape == (3, 16, 16)
    assert -1 <= pixels.min() <= pixels.max() <= 1


@pytest.mark.parametrize("shape", [(16, 16, 3), (90, 70, 3)])
def test_a_picture_is_fitted_as_its_pixels_are(shape: tuple[int, int, int]) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, shape, np.uint8)
    assert np.array_equal(fit(Image.fromarray(pixels), 16), fit(pixels, 16))
    with pytest.raises(ValueError, match="mode L, expected RGB"):
        fit(Image.fromarray(pixels[:, :, 0]), 16)


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(fit(stripes, 8)[:, :, 1:-1]).max() < 0.05


def test_mask_takes_nearest() -> None:
    mask = np.array([[0, 1], [2, 7]], np.uint8)
    assert np.array_equal(fit_mask(mask, 4), np.kron(mask, np.ones((2, 2), np.uint8)))
    assert set(np.unique(fit_mask(np.kron(mask, np.ones((50, 50), np.uint8)), 3))) <= {0, 1, 2, 7}


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"uint8 \(H, W, 3\)"):
        fit(np.zeros((4, 4), np.uint8), 4)
    with pytest.raises(ValueError, match=r"uint8 \(H, W\)"):
        fit_mask(np.zeros((4, 4), np.int64), 4)
    with pytest.raises(ValueError, match="at least 1"):
        fit(np.zeros((4, 4, 3), np.uint8), 0)
