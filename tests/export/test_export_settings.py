"""Test-time settings changed at export: proven, served and recorded with the changed values, in either form."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from exporting import Exported

from slime_export.proof import parity
from slime_image import decode
from slime_optimize import training_image
from slime_optimize.method.prediction import load_predictor
from slime_repository import layout, record, shared_store

ONE_KIND = pytest.mark.parametrize("exported", ["sd15"], indirect=True)
CHANGES = ("threshold=0.02", "edge_tolerance=0.2")
CHANGED = {"threshold": 0.02, "edge_tolerance": 0.2}


@pytest.mark.slow
@ONE_KIND
def test_a_baked_segmenter(
    command: ModuleType, exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, repository = Path(shutil.copytree(exported.folder, tmp_path / "car")), tmp_path / "repository"
    (image,) = parity.random_images(np.random.default_rng(5), 1, 100)
    training_image.save(folder, image, exported.predictor.backbone.image_size)
    words = [str(folder), "--repository", str(repository), *(word for each in CHANGES for word in ("--set", each))]
    assert command.main(words) == 0
    assert "settings changed at export: threshold 0.02, edge_tolerance 0.2" in capsys.readouterr().out
    written = json.loads((repository / "car_unet" / "1" / "parity.json").read_text())
    assert written["settings_changed"] == CHANGED
    changed = load_predictor(folder, changes=CHANGES)
    said = layout.parameters(repository / "car")
    assert json.loads(said["settings_changed"]) == CHANGED
    assert said["segmenter"] == changed.segmenter.hash != exported.predictor.segmenter.hash
    # The edges' tolerance is above 0 now, so the image guides the upsampling.
    assert "GUIDE_IMAGE" in layout.config_text(repository / "car")
    check = record.read(repository / "car" / "1").check
    assert check.training_image
    assert np.array_equal(check.mask_HW, changed.mask(decode(check.image)))
    assert not np.array_equal(check.mask_HW, exported.predictor.mask(decode(check.image)))


@ONE_KIND
def test_a_shared_segmenter(command: ModuleType, exported: Exported, shared_repository: Path, tmp_path: Path) -> None:
    repository = shutil.copytree(shared_repository, tmp_path / "repository")
    words = [str(exported.folder), "--repository", str(repository), "--embedding", "shared"]
    assert command.main([*words, "--name", "plain"]) == 0
    assert command.main([*words, "--name", "changed", "--set", "threshold=0.02"]) == 0
    assert len(layout.groups(repository)) == 1, "a threshold does not shape the graph"
    store = shared_store.store_of(repository)
    told = {name: store.get(name).description.get("settings_changed") for name in ("plain", "changed")}
    assert told["plain"] is None and json.loads(told["changed"]) == {"threshold": 0.02}


@ONE_KIND
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("threshold", "--set threshold: expected NAME=VALUE, such as threshold=0.1"),
        ("learning_rate=1", "--set learning_rate=1: learning_rate is part of what was learned, expected one of"),
        ("threshold=high", "--set threshold=high"),
    ],
)
def test_changes_that_cannot_be_made(
    mistake: Callable[..., str], exported: Exported, tmp_path: Path, change: str, said: str
) -> None:
    assert said in mistake(tmp_path / "new", 2, exported.folder, "--set", change)
