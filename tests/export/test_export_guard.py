"""A segmenter that is worse does not take the place of the one that serves, in either form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from exporting import Exported, annotated

from slime_export.errors import ExportError, QualityError
from slime_export.options import ExportOptions
from slime_export.proof.parity import random_images
from slime_export.publish import guard
from slime_optimize.evaluation import read_data
from slime_optimize.method.prediction import load_predictor
from slime_optimize.segmenter import Segmenter

pytestmark = pytest.mark.parametrize("exported", ["sd15"], indirect=True)
IMAGES = random_images(np.random.default_rng(7), 2, 64)


@pytest.fixture
def failed(exported: Exported, tmp_path: Path) -> Path:
    """The exported segmenter again, with the figures of a run that did not find its wheels."""
    made = Segmenter.load(exported.folder)
    figures = {"training": {"iou": {"background": 80.0, "wheel": 3.2, "plate": 20.0}}}
    replace(made, metrics=figures).save(tmp_path / "failed")
    return tmp_path / "failed"


@pytest.mark.usefixtures("without_tracing")
def test_what_failed_on_its_own_training_image(
    mistake: Callable[..., str],
    command: ModuleType,
    exported: Exported,
    failed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = mistake(exported.repository, 1, failed, "--name", "car")
    assert "fails on its own training data (wheel 3.2 % IoU, under 20 %)" in line
    assert "version 1 serves on" in line and "--not-worse --data FOLDER" in line and "--force" in line
    # Nothing serves under this name yet: it is published, with a warning, and then forced.
    for more in ([], ["--force"]):
        assert command.main([str(failed), "--repository", str(tmp_path / "repository"), *more]) == 0
        told = capsys.readouterr().out
        assert "warning: segmenter failed: fails on its own training data" in told
    assert "published failed version 2" in told


@pytest.mark.slow
@pytest.mark.usefixtures("without_tracing")
def test_annotated_images_decide(
    mistake: Callable[..., str],
    command: ModuleType,
    exported: Exported,
    failed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = annotated(tmp_path / "data", exported.predictor, IMAGES)
    repository = tmp_path / "repository"
    words = [str(failed), "--repository", str(repository), "--data", str(data), "--not-worse"]
    for _ in range(2):  # over nothing, and over itself
        assert command.main(words) == 0
    assert "100.0 % of version 1, which serves, 100.0 % of the new one" in capsys.readouterr().out
    for mask in (data / "masks").iterdir():
        mask.write_bytes((data / "masks" / "0.png").read_bytes())
    line = mistake(repository, 1, failed, "--data", data, "--at-least", "99")
    assert "has mean IoU" in line and "on 2 images" in line and "expected 99 or more (--at-least)" in line


@pytest.mark.parametrize("embedding", ["baked", "shared"])
def test_the_live_one_is_measured_without_a_server(
    embedding: str, exported: Exported, shared_repository: Path, tmp_path: Path
) -> None:
    repository = {"baked": exported.repository, "shared": shared_repository}[embedding]
    folder = annotated(tmp_path / "data", exported.predictor, IMAGES)
    options = ExportOptions(folder=exported.folder, repository=repository, data=folder, not_worse=True)
    data, lines = read_data(folder, exported.predictor.segmenter.parts), list[str]()
    guard.require_good(options, 99.95, data, lines.append)
    assert "100.0 % of version 1, which serves" in lines[0] or "99.9 % of version 1" in lines[0]
    with pytest.raises(QualityError, match=r"segmenter car: is worse than version 1, which serves on \(99\.0 %"):
        guard.require_good(options, 99.0, data, lines.append)
    with pytest.raises(QualityError):  # a figure that is no number is no good one
        guard.require_good(options, float("nan"), data, lines.append)
    with pytest.raises(ExportError, match=r"the live car has the parts background, .* cannot be compared"):
        guard.require_good(options, 99.0, replace(data, parts=("background", "body")), lines.append)


def test_a_shared_segmenter_is_measured_too(
    mistake: Callable[..., str],
    make_segmenter: Callable[..., Path],
    exported: Exported,
    shared_repository: Path,
    tmp_path: Path,
) -> None:
    """The other segmenter is of the same backbone, with other embeddings."""
    data = annotated(tmp_path / "data", exported.predictor, IMAGES)
    first = Segmenter.load(exported.folder)
    other = make_segmenter(tmp_path / "other", exported.kind, seed=1)
    replace(first, text_embedding=Segmenter.load(other).text_embedding).save(tmp_path / "car")
    assert load_predictor(tmp_path / "car").segmenter.hash != first.hash
    line = mistake(shared_repository, 1, tmp_path / "car", "--embedding", "shared", "--data", data, "--not-worse")
    assert "segmenter car: is worse than version 1, which serves on" in line
