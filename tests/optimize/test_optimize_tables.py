"""Tables as people and programs read them, and summaries over several segmenters."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from slime_optimize.metrics import Report, Summary, image_score, smallest_third, spread
from slime_optimize.tables import Figure, Table

TABLE = Table(
    columns=("part", "per image", "runs"),
    rows=(("a|b", Figure(mean=81.46, std=0.98), "3"), ("c", Figure(mean=float("nan")), "0")),
)


def test_text_is_aligned() -> None:
    lines = TABLE.text().splitlines()
    assert [line.split() for line in lines] == [
        ["part", "per", "image", "runs"],
        ["a|b", "81.5", "±", "1.0", "3"],
        ["c", "nan", "0"],
    ]
    assert len({len(line) for line in lines}) == 1 and lines[2].index("nan") + 3 == lines[1].index("1.0") + 3


def test_markdown_keeps_its_columns() -> None:
    lines = TABLE.markdown().splitlines()
    assert lines[0].split() == ["|", "part", "|", "per", "image", "|", "runs", "|"]
    assert lines[1].startswith("|:") and lines[2].startswith("| a\\|b ")
    assert [line.replace("\\|", "").count("|") for line in lines] == [4] * 4


def test_csv_has_a_column_for_the_spread_where_there_is_one() -> None:
    rows = list(csv.reader(TABLE.csv().splitlines()))
    assert rows == [["part", "per image", "per image std", "runs"], ["a|b", "81.460", "0.980", "3"], ["c", "", "", "0"]]


def test_rows_have_the_headings_length() -> None:
    with pytest.raises(ValueError, match="row of 1 cells, expected 2"):
        Table(columns=("a", "b"), rows=(("c",),))
    assert Table(columns=("a", "b"), rows=()).text().split() == ["a", "b"]


def test_spread_is_the_populations_and_skips_what_is_no_number() -> None:
    assert spread([1.0, 3.0]) == Figure(mean=2.0, std=1.0)
    assert spread([1.0]) == Figure(mean=1.0)
    assert spread([float("nan"), 4.0]) == Figure(mean=4.0, std=0.0)
    assert str(spread([float("nan")] * 2)) == "nan"


def made(per_image: list[float], dataset: list[float]) -> Report:
    return Report(parts=("background", "a"), images=2, per_image_P=np.array(per_image), dataset_P=np.array(dataset))


def test_summary_of_several() -> None:
    summary = Summary(reports=(made([80, 40], [70, 30]), made([90, 60], [72, 30])))
    assert [[str(cell) for cell in row] for row in summary.table().rows] == [
        ["background", "85.0 ± 5.0", "71.0 ± 1.0"],
        ["a", "50.0 ± 10.0", "30.0 ± 0.0"],
        ["mean IoU", "67.5 ± 7.5", "50.5 ± 0.5"],
    ]
    values = summary.as_json()
    assert (values["mean_iou"], values["iou"]["a"], values["images"]) == (67.5, 50.0, 2)
    assert values["std"] == {
        "mean_iou": 7.5,
        "iou": {"background": 5.0, "a": 10.0},
        "dataset_mean_iou": 0.5,
        "dataset_iou": {"background": 1.0, "a": 0.0},
    }


def test_a_single_report_has_no_spread() -> None:
    report = made([80, float("nan")], [70, float("nan")])
    assert "std" not in report.as_json() and "±" not in report.table()
    assert Summary(reports=(report,)).as_json() == report.as_json()


def test_reports_of_other_data_are_not_summed_up() -> None:
    other = Report(parts=("background", "b"), images=2, per_image_P=np.zeros(2), dataset_P=np.zeros(2))
    with pytest.raises(ValueError, match="2 data sets"):
        Summary(reports=(made([1, 2], [3, 4]), other))


def test_image_score_skips_parts_that_are_not_there() -> None:
    assert image_score(np.array([[3, 1, 0], [0, 0, 0], [2, 0, 2]])) == pytest.approx(100 * (3 / 6 + 2 / 4) / 2)


def test_smallest_third_is_by_share_of_an_image_and_without_the_background() -> None:
    large, small = np.zeros((10, 10), np.uint8), np.zeros((2, 2), np.uint8)
    large[:2], large[2:4, :9], large[4] = 1, 2, 3
    small[0], small[1, 0] = 3, 4
    parts = ("background", "a", "b", "c", "d", "e", "f")
    assert smallest_third([large, small], parts) == ("e", "f")  # in neither
    assert smallest_third([large, small], parts[:5]) == ("b",)
    assert smallest_third([np.array([[0, 1]], np.uint8)], parts[:2]) == ("a",)
