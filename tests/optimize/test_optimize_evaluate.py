"""optimize/evaluate.py: several segmenters at once, the files it writes, and the picture of best, median and worst."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from painting import PARTS, Main, paint
from slime_optimize import Backbone, Segmenter, Settings
from slime_optimize.data.annotations import Example
from slime_optimize.evaluation import _telling, confusions, read_data
from slime_optimize.method.prediction import Predictor
from slime_optimize.method.training import optimise
from slime_optimize.metrics import report

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def segmenters(loaded: dict[str, Backbone], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Embeddings drawn at random, whose masks differ more than those of a few steps."""
    image, mask = paint()
    example, made = Example(name="blocks", image_HW3=image, mask_HW=mask), tmp_path_factory.mktemp("segmenters")
    settings = Settings(steps=1, threshold=0.0)
    learned = optimise(loaded["sd15"], [example], PARTS, settings, progress=False)
    for seed in SEEDS:
        noise = torch.randn(learned.text_embedding.shape, generator=torch.Generator().manual_seed(seed))
        replace(learned, text_embedding=3 * noise, seed=seed).save(made / str(seed))
    return [made / str(seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images; the last has only one of the parts."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for index in range(5):
        image, mask = paint(index)
        Image.fromarray(image).save(folder / "images" / f"{index}.png")
        Image.fromarray(np.where(mask == 2, 0, mask).astype(np.uint8) if index == 4 else mask).save(
            folder / "masks" / f"{index}.png"
        )
    (folder / "parts.json").write_text(json.dumps(PARTS))
    return folder


def test_several_segmenters(
    evaluate: Main, segmenters: list[Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name: tmp_path / "deep" / f"iou.{name}" for name in ("json", "csv", "markdown")}
    written = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    assert evaluate([*map(str, segmenters), "--data", str(data), "--quiet", *written]) == 0
    shown = capsys.readouterr().out
    assert "5 images, masks from WAS, mean ± std over 3 segmenters" in shown
    values = json.loads(files["json"].read_text())
    means = [each["mean_iou"] for each in values["segmenters"]]
    assert [each["seed"] for each in values["segmenters"]] == list(SEEDS) and len(set(means)) > 1
    assert values["mean_iou"] == pytest.approx(np.mean(means), abs=2e-3)
    assert values["std"]["mean_iou"] == pytest.approx(np.std(means), abs=2e-3)
    rows = {row["IoU, %"]: row for row in csv.DictReader(files["csv"].read_text().splitlines())}
    assert list(rows) == [*PARTS, "mean IoU"]
    assert float(rows["red"]["per image std"]) == values["std"]["iou"]["red"]
    line = f"{values['mean_iou']:.1f} ± {values['std']['mean_iou']:.1f}"
    assert line in shown and line in files["markdown"].read_text()
    assert files["markdown"].read_text().startswith("| IoU, %")
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["iou.csv", "iou.json", "iou.markdown"]


def test_figures_are_those_of_each_alone(evaluate: Main, segmenters: list[Path], data: Path, tmp_path: Path) -> None:
    alone, together = tmp_path / "alone.json", tmp_path / "together.json"
    assert evaluate([str(segmenters[1]), "--data", str(data), "--quiet", "--json", str(alone)]) == 0
    assert evaluate([*map(str, segmenters), "--data", str(data), "--quiet", "--json", str(together)]) == 0
    one = json.loads(alone.read_text())
    assert "std" not in one
    assert one["segmenters"] == [json.loads(together.read_text())["segmenters"][1]]
    assert one["iou"] == one["segmenters"][0]["iou"]


def test_squashed_is_measured_at_that_size(segmenters: list[Path], data: Path, loaded: dict[str, Backbone]) -> None:
    predictor = Predictor(Segmenter.load(segmenters[0]), loaded["sd15"])
    own, squashed = (confusions(predictor, read_data(data, PARTS, squash=side)) for side in (None, 32))
    assert {int(each.sum()) for each in own} == {70 * 90}
    assert {int(each.sum()) for each in squashed} == {32 * 32}
    assert report(own, PARTS).mean == pytest.approx(report(squashed, PARTS).mean, abs=10)


def test_picture_shows_nine_images_once(
    evaluate: Main, segmenters: list[Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = tmp_path / "deep" / "telling.png"
    assert evaluate([str(segmenters[0]), "--data", str(data), "--quiet", "--picture", str(drawn)]) == 0
    with Image.open(drawn) as picture:
        assert picture.width == 3 * 264 + 8 and 3 * (264 + 22) < picture.height < 3 * (264 + 22) + 80
    assert [path.name for path in drawn.parent.iterdir()] == [drawn.name]


def test_best_median_and_worst() -> None:
    shown = _telling([50.0, 10, 90, 20, 80, 30, 70, 40, 60, 55])
    assert [index for _, index in shown] == [2, 4, 6, 8, 9, 0, 5, 3, 1]
    assert [label for label, _ in shown] == ["best"] * 3 + ["median"] * 3 + ["worst"] * 3
    assert _telling([1.0]) == [("best", 0)]
    assert _telling([1.0, 2.0]) == [("best", 1), ("worst", 0)]
    assert _telling([3.0, 1.0, 2.0]) == [("best", 0), ("median", 2), ("worst", 1)]


def test_other_forms_of_data(
    evaluate: Main, segmenters: list[Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """JPEGs and coloured masks with a legend, side by side: what run.py reads."""
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)
    legend = tmp_path / "legend.json"
    legend.write_text(json.dumps({name: colour.tolist() for name, colour in zip(PARTS, colours, strict=True)}))
    for path in sorted((data / "images").iterdir())[:3]:
        Image.open(path).save(tmp_path / f"{path.stem}.jpg", quality=100, subsampling=0)
        mask = np.asarray(Image.open(data / "masks" / path.name))
        Image.fromarray(colours[mask]).save(tmp_path / f"{path.stem}.png")
    told = tmp_path / "out" / "iou.json"
    words = [str(segmenters[0]), "--data", str(tmp_path), "--legend", str(legend), "--quiet", "--json", str(told)]
    assert evaluate(words) == 0, capsys.readouterr().err
    values = json.loads(told.read_text())
    assert values["images"] == 3 and list(values["iou"]) == list(PARTS)


def test_mistakes(
    evaluate: Main, segmenters: list[Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*words: object) -> str:
        assert evaluate([*map(str, words), "--data", str(data), "--quiet"]) == 2
        return capsys.readouterr().err

    other = tmp_path / "other"
    other.mkdir()
    for path in segmenters[0].iterdir():
        (other / path.name).write_bytes(path.read_bytes().replace(b'"green"', b'"grass"'))
    assert "expected segmenters of one thing" in fails(segmenters[0], other)
    assert "got 0, expected the side of a square" in fails(segmenters[0], "--squash", 0)


def test_settings_changed_for_the_evaluation(
    evaluate: Main, segmenters: list[Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(segmenters[0]), "--data", str(data), "--quiet", "--json", str(tmp_path / "iou.json")]
    assert evaluate(words) == 0
    before = json.loads((tmp_path / "iou.json").read_text())
    assert evaluate([*words, "--set", "threshold=1", "--set", "edge_tolerance=0.2"]) == 0
    after = json.loads((tmp_path / "iou.json").read_text())
    assert before["set"] == [] and after["set"] == ["threshold=1", "edge_tolerance=0.2"]
    # No cross map reaches 1, so that every part but the background is left out.
    assert after["iou"]["background"] > 0 and [after["iou"][name] for name in PARTS[1:]] == [0.0, 0.0]
    assert before["mean_iou"] != after["mean_iou"]
    capsys.readouterr()
    assert evaluate([*words, "--set", "steps=3"]) == 2
    assert "error: --set steps=3: steps is part of what was learned, expected one of" in capsys.readouterr().err
