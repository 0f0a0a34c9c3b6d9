"""Validation images choose among the embeddings; without any, no test pass is made while learning."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from painting import PARTS, Files, Main, paint
from slime_optimize import Backbone, InputError, Predictor, Segmenter, Settings
from slime_optimize.data.annotations import Example
from slime_optimize.data.validation import Measured, Validation, hold_back, measure
from slime_optimize.method.run import Run
from slime_optimize.method.training import Learned, learn
from slime_optimize.metrics import Report


def painted(name: str, *parts: int) -> Example:
    mask = np.zeros((8, 8), np.uint8)
    mask[0, : len(parts)] = parts
    return Example(name=name, image_HW3=np.zeros((8, 8, 3), np.uint8), mask_HW=mask)


@pytest.mark.parametrize(
    ("shown", "spared"),
    [
        ({"a": (1, 2)}, None),
        ({"a": (1, 2), "b": (1, 2)}, None),  # half of what there is to learn from
        ({"a": (1, 2), "b": (1, 2), "c": (1, 2)}, "c"),
        ({"a": (1,), "b": (1, 2), "c": (2,), "d": (1, 3)}, "c"),
        ({"a": (1,), "b": (2,), "c": (3,)}, None),
    ],
)
def test_the_last_that_can_be_spared_is_held_back(shown: dict[str, tuple[int, ...]], spared: str | None) -> None:
    examples = [painted(name, *parts) for name, parts in shown.items()]
    rest, held = hold_back(examples)
    assert (held.name if held else None) == spared
    assert [example.name for example in rest] == [name for name in shown if name != spared]


def test_measured_every_so_many_steps_and_at_the_end() -> None:
    examples = (painted("a", 1),)
    due = [step for step in range(1, 26) if Validation(examples=examples).is_due(step, 25)]
    assert due == [3, 6, 9, 12, 15, 18, 21, 24, 25]
    assert [s for s in range(1, 5) if Validation(examples=examples).is_due(s, 4)] == [1, 2, 3, 4]
    assert [s for s in range(1, 8) if Validation(examples=examples, every=5).is_due(s, 7)] == [5, 7]
    with pytest.raises(InputError, match="got 0 steps"):
        Validation(examples=examples, every=0)
    with pytest.raises(InputError, match="got no image"):
        Validation(examples=())


def test_the_best_is_kept_and_of_equals_the_later() -> None:
    def scored(percent: float) -> Report:
        values = np.array([percent, percent])
        return Report(parts=("background", "a"), images=1, per_image_P=values, dataset_P=values)

    found = Measured()
    for step, percent in ((1, 20.0), (2, 50.0), (3, 50.0), (4, 10.0)):
        found = found.and_then(step, torch.full((1, 2), float(step)), scored(percent))
    assert found.iou_by_step == {1: 20.0, 2: 50.0, 3: 50.0, 4: 10.0}
    assert found.step == 3 and found.learned_KD is not None and float(found.learned_KD[0, 0]) == 3
    assert found.report["mean_iou"] == 50.0


@pytest.fixture
def learned(loaded: dict[str, Backbone], example: Example) -> Learned:
    """Validated on the training image itself."""
    return learn(
        Run(
            backbone=loaded["sd15"],
            examples=(example,),
            parts=PARTS,
            settings=Settings(steps=6, learning_rate=0.2, threshold=0.0),
            validation=Validation(examples=(example,), every=1),
        ),
        progress=False,
    )


def test_the_chosen_embeddings_score_what_was_measured(learned: Learned, loaded: dict[str, Backbone]) -> None:
    metrics, scores = learned.segmenter.metrics, learned.measured.iou_by_step
    chosen = metrics["step"]
    assert list(scores) == [1, 2, 3, 4, 5, 6] and len(set(scores.values())) > 1
    assert scores[chosen] == max(scores.values())
    assert metrics["validation"]["mean_iou"] == pytest.approx(scores[chosen], abs=1e-3)
    assert metrics["validation"]["mean_iou_by_step"] == {str(s): round(iou, 3) for s, iou in scores.items()}
    again = measure(Predictor(learned.segmenter, loaded["sd15"]), [example_of(learned)])
    assert again.mean == pytest.approx(scores[chosen], abs=0.5)
    assert torch.equal(learned.segmenter.embeddings, learned.snapshots[chosen]) or chosen not in learned.snapshots


def example_of(learned: Learned) -> Example:
    image, mask = paint()
    assert mask.shape == learned.masks_HW[0].shape
    return Example(name="blocks", image_HW3=image, mask_HW=mask)


def test_without_validation_nothing_is_predicted_until_the_end(
    loaded: dict[str, Backbone], example: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    predicted: list[int] = []
    masks = Predictor.masks
    monkeypatch.setattr(Predictor, "masks", lambda self, images: predicted.append(len(images)) or masks(self, images))
    run = Run(backbone=loaded["sd15"], examples=(example,), parts=PARTS, settings=Settings(steps=3))
    made = learn(run, progress=False)
    assert predicted == [1]
    assert made.segmenter.metrics["step"] == 3 and "validation" not in made.segmenter.metrics
    assert torch.equal(made.segmenter.embeddings, made.snapshots[3])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of three images and masks."""
    folder = tmp_path / "data"
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for index in range(3):
        image, mask = paint(index)
        Image.fromarray(image).save(folder / "images" / f"{index}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{index}.png")
    (folder / "parts.json").write_text(json.dumps(list(PARTS)))
    return folder


@pytest.fixture
def words(data: Path, folders: dict[str, Path], tmp_path: Path) -> list[str]:
    """run.py's command line."""
    backbone, out = str(folders["sd15"]), str(tmp_path / "out")
    return ["--data", str(data), "--backbone", backbone, "--out", out, "--steps", "2", "--quiet", "--no-report"]


def test_one_of_several_is_held_back(
    run: Main, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words) == 0
    shown = capsys.readouterr().out
    assert "2: held back to choose the embeddings by" in shown and "on validation" in shown
    made = Segmenter.load(tmp_path / "out")
    assert len(made.training_images) == 2 and made.parts == PARTS
    assert made.metrics["validation"]["held_back"] == "2"
    assert list(made.metrics["validation"]["mean_iou_by_step"]) == ["1", "2"]


def test_none_is_held_back_where_that_is_wished(run: Main, words: list[str], tmp_path: Path) -> None:
    assert run([*words, "--no-validation"]) == 0
    made = Segmenter.load(tmp_path / "out")
    assert len(made.training_images) == 3 and "validation" not in made.metrics


def test_a_folder_to_choose_by(run: Main, words: list[str], data: Path, tmp_path: Path) -> None:
    assert run([*words, "--validation", str(data), "--validate-every", "1"]) == 0
    made = Segmenter.load(tmp_path / "out")
    assert len(made.training_images) == 3
    assert made.metrics["validation"]["images"] == 3 and made.metrics["validation"]["held_back"] is None
    assert not (tmp_path / "out" / "report.html").exists()


def test_mistakes_in_the_sources(
    run: Main, words: list[str], data: Path, files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mistakes = {
        "got --data and --image": [*words, "--image", str(files.image)],
        "got --validation and --no-validation": [*words, "--validation", str(data), "--no-validation"],
        "no such file or folder": [*words, "--validation", str(tmp_path / "nowhere")],
        "got 0 steps": [*words, "--validate-every", "0"],
        "got no --mask, --parts": ["--image", str(files.image), *words[2:]],
    }
    for expected, line in mistakes.items():
        assert run(line) == 2
        shown = capsys.readouterr()
        assert expected in shown.err and len(shown.err.splitlines()) == 1 and shown.out == ""
    (data / "parts.json").write_text(json.dumps([*PARTS, "blue"]))
    assert run([*words, "--parts", *PARTS, "blue"]) == 2
    told = capsys.readouterr().err
    assert "has no pixel of 'blue' (id 3)" in told and "give --parts background red green" in told
    assert not (tmp_path / "out").exists()
