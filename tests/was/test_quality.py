"""What an answer tells of itself."""

from __future__ import annotations

import numpy as np
import pytest

from slime_was import foreground, margin


def test_foreground_is_what_is_not_background() -> None:
    assert foreground(np.array([[0, 1], [2, 0]], np.uint8)) == 0.5
    assert foreground(np.zeros((3, 3), np.uint8)) == 0.0


def test_margin_of_clear_and_of_drawn_scores() -> None:
    clear = np.array([1.0, 0.0, 0.0], np.float32)[:, None, None].repeat(4, 1)
    assert margin(clear) == 1.0
    assert margin(np.array([2.0, 1.0, 0.0], np.float32)[:, None, None]) == 0.5
    assert margin(np.ones((3, 2, 2), np.float32)) == 0.0
    assert margin(np.ones((1, 2, 2), np.float32)) == 0.0


def test_margin_is_the_mean_over_pixels_and_knows_no_scale() -> None:
    scores = np.random.default_rng(0).random((6, 8, 8), np.float32)
    each = [margin(scores[:, y : y + 1, x : x + 1]) for y in range(8) for x in range(8)]
    assert margin(scores) == pytest.approx(np.mean(each), rel=1e-5)
    assert margin(7 * scores + 3) == pytest.approx(margin(scores), rel=1e-4)


def test_margin_of_merged_patches_looks_at_some_lines() -> None:
    """Those of 64 to 127 in each direction, here every fourth; a whole map costs 50 ms."""
    scores = np.random.default_rng(0).random((4, 256, 300), np.float32)
    assert margin(scores) == margin(scores[:, ::4, ::4])
    assert margin(scores[:, :127, :100]) != margin(scores[:, :127:2, :100:2])
