"""Lower precisions from the command to the repository: converted, held to their masks, measured on annotated images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from exporting import PARTS, Exported
from PIL import Image

from slime_export.errors import ParityError
from slime_export.options import ExportOptions
from slime_export.pipeline import export
from slime_export.proof import parity
from slime_export.proof.parity import random_images
from slime_export.proof.report import Gate, Report
from slime_optimize import training_image
from slime_repository import layout

ONE_KIND = pytest.mark.parametrize("exported", ["sd15"], indirect=True)
# Random networks of eight channels keep their masks in no int8.
NO_GATE = Gate(own_error_times=None, mask_agreement=0.0)
WIDE = Gate(own_error_times=None, mask_agreement=0.9, iou_points=5.0)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, image in enumerate(random_images(np.random.default_rng(5), 3, 64)):
        Image.fromarray(image).save(folder / f"{index}.png")
    return folder


def made(exported: Exported, repository: Path, **wanted: Any) -> tuple[Report, Path]:
    """The report, and the file of the UNet."""
    published, report = export(ExportOptions(folder=exported.folder, repository=repository, **wanted), lambda _: None)
    unet = layout.unet_of(repository / published.name)
    assert unet
    return report, repository / unet / str(published.versions.unet) / "model.onnx"


@ONE_KIND
@pytest.mark.usefixtures("without_tracing")
def test_fp16_with_annotated_images(exported: Exported, images: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for part in ("images", "masks"):
        (data / part).mkdir(parents=True)
    (data / "parts.json").write_text(json.dumps(list(PARTS)))
    covered = np.zeros(len(PARTS))
    for path in sorted(images.glob("*.png")):
        image = np.array(Image.open(path))
        Image.fromarray(image).save(data / "images" / path.name)
        mask = exported.predictor.mask(image)
        covered += np.bincount(mask.ravel(), minlength=len(PARTS)) / mask.size / 3
        mask[:8] = 1  # so that PyTorch itself is not perfect
        Image.fromarray(mask).save(data / "masks" / path.name)
    assert covered[covered > 0].min() > 0.1, "a part of a few pixels would make the mean IoU a matter of chance"
    report, unet = made(exported, tmp_path / "models", precision="fp16", data=data, gate=WIDE)
    assert report.score and report.score.images == 3
    assert 10 < report.score.before < 99.9
    assert report.score.after == pytest.approx(report.score.before, abs=5.0)
    counts = report.graphs["unet"]
    assert counts.share("fp16") > 0.5 and counts.share("fp16") + counts.share("fp32") == pytest.approx(1)
    written = json.loads((unet.parent / "parity.json").read_text())
    assert written["variant"]["precision"] == "fp16" and written["score"]["before"] == report.score.before
    assert written["share_of_macs"]["unet"]["fp16"] == counts.share("fp16")
    model = onnx.load(unet)
    assert {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)} == {1}
    # An encoder of its own precision, so that fp32 segmenters keep theirs.
    assert layout.versions(tmp_path / "models" / "vae_encoder_fp16") == [1]
    assert not (tmp_path / "models" / "vae_encoder").exists()


@ONE_KIND
@pytest.mark.slow
@pytest.mark.usefixtures("without_tracing")
def test_int8_calibrated_on_the_users_images(exported: Exported, images: Path, tmp_path: Path) -> None:
    report, unet = made(exported, tmp_path / "models", precision="int8", calibration=images, gate=NO_GATE)
    assert report.graphs["unet"].share("int8") > 0.3
    assert report.graphs["encoder"].share("fp32") == 1
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(unet).graph.node}
    assert layout.versions(tmp_path / "models" / "vae_encoder") == [1]


@ONE_KIND
@pytest.mark.usefixtures("without_tracing")
def test_a_loss_of_mean_iou_is_refused(
    exported: Exported, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter((60.0, 58.9))
    monkeypatch.setattr("slime_export.proof.parity.mean_iou", lambda *_: next(scores))
    monkeypatch.setattr("slime_export.pipeline.read_data", lambda _, parts: _Nothing(parts))
    with pytest.raises(ParityError, match=r"mean IoU falls by 1\.10 points, expected at most 1.*nothing was published"):
        made(exported, tmp_path / "models", precision="fp16", data=images)
    assert not (tmp_path / "models").exists()


class _Nothing:
    def __init__(self, parts: tuple[str, ...]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return 0


@ONE_KIND
def test_the_image_it_was_learned_from_is_tried_first(
    exported: Exported, make_segmenter: Callable[..., Path], tmp_path: Path
) -> None:
    (image,) = random_images(np.random.default_rng(9), 1, 64)
    training_image.save(tmp_path, image, 64)
    kept = training_image.find(tmp_path)
    tried = parity.trial_images(exported.predictor, kept)
    assert kept is not None and len(tried) == 3
    assert np.array_equal(tried[0], kept)
    assert np.array_equal(tried[1], parity.trial_images(exported.predictor)[1])
