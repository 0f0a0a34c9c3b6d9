"""The measures of films of masks, on cases that are worked out by hand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from benchmarks.quality import consistency

Labels = npt.NDArray[np.uint8]


def test_vc_is_what_stays_of_what_should() -> None:
    """Two windows of three frames: four still pixels, of which three stay; then two, of which both do."""
    truth = np.array([[[0, 1, 1, 2]], [[0, 1, 1, 2]], [[0, 1, 1, 2]], [[0, 1, 2, 1]]], np.uint8)
    masks = np.array([[[5, 1, 0, 2]], [[5, 0, 0, 2]], [[5, 0, 0, 2]], [[5, 0, 1, 2]]], np.uint8)
    assert consistency.video_consistency(truth, masks, 3) == pytest.approx(100 * (3 / 4 + 2 / 2) / 2)
    assert consistency.video_consistency(truth, truth, 4) == 100
    assert np.isnan(consistency.video_consistency(truth, masks, 5))


def test_tc_follows_the_flow_and_leaves_out_what_is_hidden() -> None:
    """A part that moves by two pixels is consistent; one that stays while its points move is not."""
    first, second = np.zeros((2, 4, 8), np.uint8)
    first[1:3, 1:3], second[1:3, 3:5] = 1, 1
    flow = np.zeros((1, 4, 8, 2), np.float32)
    flow[0, 1:3, 1:3, 0] = 1.6  # the nearest pixel is two away
    hidden = np.zeros((1, 4, 8), bool)
    hidden[0, 1:3, 3:5] = True
    moved, stayed = np.stack([first, second]), np.stack([first, first])
    assert consistency.mean_iou(consistency.temporal_confusion(moved, flow, hidden, 2)) == 100
    counts = consistency.temporal_confusion(stayed, flow, hidden, 2)
    np.testing.assert_array_equal(counts, [[24, 0], [4, 0]])
    assert consistency.mean_iou(counts) == pytest.approx(100 * (24 / 28 + 0) / 2)


def test_flicker_counts_labels_of_a_single_frame() -> None:
    """Of 2 x 10 places in the middle frames, three are A-B-A; a label that comes to stay, or a third one, is not."""
    films = np.zeros((4, 1, 10), np.uint8)
    films[1, 0, 0] = films[2, 0, 0] = 1  # two frames
    films[1, 0, 1] = films[2, 0, 2] = films[2, 0, 3] = 1
    films[1:, 0, 4] = 2
    films[1, 0, 5], films[2:, 0, 5] = 1, 2
    assert consistency.flicker(films) == pytest.approx(1000 * 3 / 20)
    assert consistency.flicker(films, films) == 0
    assert consistency.flicker(films, np.zeros_like(films)) == pytest.approx(1000 * 3 / 20)


def square(top: int, left: int, side: int = 20) -> Labels:
    mask = np.zeros((100, 100), np.uint8)
    mask[top : top + side, left : left + side] = 1
    return mask


def test_j_and_f_are_davis() -> None:
    """A square moved by ten pixels overlaps in a half; moved by one, its outline is within the tolerance of two."""
    truth = np.stack([square(10, 10), square(10, 10)])
    region, contour = consistency.region_and_contour(truth, np.stack([square(10, 10), square(10, 20)]), 3)
    assert region == pytest.approx(100 * (1 + 200 / 600) / 2)
    # An outline has 80 points. Above and below, 11 lie on the other's and 2 near its end; 4 of a side are near those.
    assert contour == pytest.approx(100 * (1 + 30 / 80) / 2)
    region, contour = consistency.region_and_contour(truth[:1], np.stack([square(11, 10)]), 2)
    assert region == pytest.approx(100 * 380 / 420) and contour == 100
    assert consistency.region_and_contour(truth, 0 * truth, 2) == (0, 0)


@pytest.mark.parametrize(("truth", "mask", "expected"), [(0, 0, 1), (1, 0, 0), (0, 1, 0), (1, 1, 1)])
def test_a_part_that_is_not_there_has_no_outline(truth: int, mask: int, expected: float) -> None:
    outlines = (square(10, 10) * truth == 1, square(10, 10) * mask == 1)
    assert consistency.contour_accuracy(*outlines) == expected
