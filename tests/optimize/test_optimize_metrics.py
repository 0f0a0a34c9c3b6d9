"""IoU on masks small enough to count by hand."""

from __future__ import annotations

import numpy as np
import pytest

from slime_optimize.metrics import confusion, image_ious, report

PARTS = ("background", "a", "b")


def grid(text: str) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    return np.array([[int(c) for c in row] for row in text.split()], dtype=np.uint8)


FIRST = confusion(grid("0011 0011"), grid("0001 0011"), 3)  # b is in neither
SECOND = confusion(grid("0022 0022"), grid("0122 0000"), 3)  # a is predicted where it is not


def test_confusion_counts_truth_by_row() -> None:
    assert FIRST.tolist() == [[4, 0, 0], [1, 3, 0], [0, 0, 0]]
    assert SECOND.tolist() == [[3, 1, 0], [0, 0, 0], [2, 0, 2]]
    with pytest.raises(ValueError, match="expected"):
        confusion(grid("00"), grid("0"), 3)


def test_image_iou_skips_parts_that_are_not_there() -> None:
    np.testing.assert_allclose(image_ious(FIRST), [4 / 5, 3 / 4, np.nan])
    np.testing.assert_allclose(image_ious(SECOND), [3 / 6, np.nan, 2 / 4])


def test_both_means() -> None:
    result = report([FIRST, SECOND], PARTS)
    np.testing.assert_allclose(result.per_image_P, [100 * (4 / 5 + 3 / 6) / 2, 75, 50])
    np.testing.assert_allclose(result.dataset_P, [100 * 7 / 11, 100 * 3 / 5, 100 * 2 / 4])
    assert result.mean == pytest.approx((65 + 75 + 50) / 3)
    assert result.dataset_mean == pytest.approx((700 / 11 + 60 + 50) / 3)


def test_a_part_of_no_image_is_left_out_of_the_mean() -> None:
    result = report([FIRST], PARTS)
    assert result.mean == pytest.approx((80 + 75) / 2)
    assert result.as_json()["iou"] == {"background": 80.0, "a": 75.0, "b": None}
    assert "nan" in result.table()


def test_table_labels_both() -> None:
    lines = report([FIRST, SECOND], PARTS).table().splitlines()
    assert lines[0].split() == ["IoU,", "%", "per", "image", "dataset"]
    assert [line.split()[0] for line in lines[1:]] == ["background", "a", "b", "mean"]
