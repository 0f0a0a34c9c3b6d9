"""The comparison with PyTorch: passes for a true export, and stops a wrong one before anything is published."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from exporting import Exported, Snapshot
from onnx import numpy_helper

import slime_export.onnx
from slime_export import parity
from slime_export.errors import ParityError
from slime_export.parity import Comparison, Difference, OnnxModel, Report, Tolerance
from slime_export.pipeline import Request, export


def test_the_export_equals_pytorch_at_every_batch(exported: Exported) -> None:
    report = exported.report
    assert [each.batch for each in report.comparisons] == [1, 2, 3]
    for each in report.comparisons:
        assert set(each.tensors) == {"LATENTS", "CROSS", "SELF", "WEIGHTING"}
        assert max(difference.largest for difference in each.tensors.values()) < 2e-4
        assert each.mask_agreement >= 0.999
    assert not report.failures
    assert "masks" in "\n".join(exported.lines)


def test_masks_of_the_comparison_have_several_parts(exported: Exported) -> None:
    images = parity.random_images(np.random.default_rng(0), 3, 64)
    masks = exported.predictor.masks(images)
    assert len(np.unique(np.stack(masks))) > 1


def test_the_report_lies_beside_the_model(exported: Exported) -> None:
    written = json.loads((exported.unet.parent / "parity.json").read_text())
    assert written["failures"] == []
    assert written["comparisons"][2]["batch"] == 3


def test_the_comparison_does_not_use_the_wrapper(exported: Exported) -> None:
    """Another seed's images give other figures, but none past tolerance."""
    encoder = OnnxModel(exported.repository / "vae_encoder" / "1" / "model.onnx")
    report = parity.compare(exported.predictor, encoder, OnnxModel(exported.unet), seed=7)
    assert not report.failures
    assert report != exported.report


def spoil(path: Path) -> None:
    """Changes one weight of the middle of the network a little."""
    model = onnx.load(path)
    weights = [each for each in model.graph.initializer if len(each.dims) == 4 and min(each.dims[:2]) > 8]
    changed = numpy_helper.to_array(weights[len(weights) // 2]) * 1.1
    weights[len(weights) // 2].CopyFrom(numpy_helper.from_array(changed, weights[len(weights) // 2].name))
    onnx.save(model, path)


@pytest.mark.usefixtures("without_tracing")
def test_a_changed_weight_is_refused_and_the_repository_untouched(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, snapshot: Callable[[Path], Snapshot]
) -> None:
    real = slime_export.onnx.write

    def spoiled(module: Any, signature: Any, folder: Path, external_over: int) -> Path:
        path = real(module, signature, folder, external_over)
        if "CROSS" in signature.outputs:
            spoil(path)
        return path

    monkeypatch.setattr(slime_export.onnx, "write", spoiled)
    for repository in (exported.repository, tmp_path / "new"):
        before = snapshot(repository)
        with pytest.raises(ParityError, match=r"^parity: (CROSS|SELF) at batch 1 differs by .*nothing was published$"):
            export(Request(folder=exported.folder, repository=repository), lambda line: None)
        assert snapshot(repository) == before


def comparison(largest: float = 0.0, agreement: float = 1.0) -> Comparison:
    return Comparison(batch=1, tensors={"SELF": Difference(largest=largest, mean=0)}, mask_agreement=agreement)


@pytest.mark.parametrize(
    ("largest", "agreement", "passes"),
    [(1e-4, 1.0, True), (2e-3, 1.0, False), (0, 0.9989, False), (float("nan"), 1, False), (0, float("nan"), False)],
)
def test_tolerance(largest: float, agreement: float, passes: bool) -> None:
    report = Report(comparisons=(comparison(largest, agreement),), tolerance=Tolerance())
    assert (not report.failures) == passes
    if not passes:
        with pytest.raises(ParityError, match="nothing was published"):
            report.require()


def test_another_shape_is_no_small_difference() -> None:
    with pytest.raises(ParityError, match=r"got shape \(2,\), expected \(3,\)"):
        parity.difference(np.zeros(2, np.float32), np.zeros(3, np.float32))
