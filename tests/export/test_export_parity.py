"""The comparison with PyTorch: passes for a true export, and stops a wrong one before anything is published."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from exporting import Exported, Snapshot, compared
from onnx import numpy_helper

import slime_export.graph.onnx_export
from slime_export.errors import ParityError
from slime_export.graph.runtimes import OnnxModel
from slime_export.options import ExportOptions
from slime_export.pipeline import export
from slime_export.proof import parity
from slime_export.proof.report import EXACT, LOWER, Comparison, Difference, Report, Score, difference


def test_the_export_equals_pytorch_at_every_batch(exported: Exported) -> None:
    report = exported.report
    assert [each.batch for each in report.comparisons] == [1, 2, 3]
    for each in report.comparisons:
        assert set(each.tensors) == {"LATENTS", "CROSS", "SELF", "POSTPROCESS"}
        assert max(difference.largest for difference in each.tensors.values()) < 1e-4
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
    assert written["variant"] == {"maps": "averaged", "precision": "fp32", "encoder": "vae", "format": "onnx"}
    assert set(written["own_error"]) == set(written["limits"]) - {"POSTPROCESS"} == {"LATENTS", "CROSS", "SELF"}
    # PyTorch itself is not exact, and neither error is nothing.
    assert all(1e-9 < each["largest"] < 1e-4 for each in written["own_error"].values())
    for name in ("unet", "encoder"):
        counts = written["graphs"][name]
        assert written["share_of_macs"][name] == {"fp32": 1.0}
        assert counts["nodes"] > 100 and written["gmac"][name] == counts["macs"] / 1e9 > 0
    assert written["graphs"]["unet"]["bytes"] == exported.unet.stat().st_size
    assert all(word in "\n".join(exported.lines) for word in ("GMAC an image", "against float64", "nodes"))


def test_the_comparison_does_not_use_the_wrapper(exported: Exported) -> None:
    """Another seed's images give other figures, but none past tolerance."""
    encoder = OnnxModel(exported.repository / "vae_encoder" / "1" / "model.onnx")
    report = compared(exported.predictor, encoder, OnnxModel(exported.unet), seed=7)
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
    real = slime_export.graph.onnx_export.write

    def spoiled(module: Any, signature: Any, folder: Path, external_over: int) -> Path:
        path = real(module, signature, folder, external_over)
        if "CROSS" in signature.outputs:
            spoil(path)
        return path

    monkeypatch.setattr(slime_export.graph.onnx_export, "write", spoiled)
    for repository in (exported.repository, tmp_path / "new"):
        before = snapshot(repository)
        with pytest.raises(ParityError, match=r"^parity: (CROSS|SELF) at batch 1 differs by .*nothing was published$"):
            export(ExportOptions(folder=exported.folder, repository=repository), lambda line: None)
        assert snapshot(repository) == before


def comparison(largest: float = 0.0, agreement: float = 1.0) -> Comparison:
    return Comparison(batch=1, tensors={"SELF": Difference(largest=largest, mean=0)}, mask_agreement=agreement)


@pytest.mark.parametrize(
    ("largest", "agreement", "own", "passes"),
    [
        (1e-4, 1.0, 0.0, True),
        (1.1e-4, 1.0, 0.0, False),
        (1.9e-4, 1.0, 5e-5, True),  # four times what PyTorch itself errs by
        (2.1e-4, 1.0, 5e-5, False),
        (0, 0.9989, 0.0, False),
        (float("nan"), 1, 0.0, False),
        (0, float("nan"), 0.0, False),
    ],
)
def test_fp32_is_exact(largest: float, agreement: float, own: float, passes: bool) -> None:
    errs = {"SELF": Difference(largest=own, mean=0)}
    report = Report(comparisons=(comparison(largest, agreement),), gate=EXACT, own_error=errs)
    assert (not report.failures) == passes
    if not passes:
        with pytest.raises(ParityError, match="nothing was published"):
            report.require()


@pytest.mark.parametrize(("agreement", "after", "passes"), [(0.99, 49.0, True), (0.989, 50, False), (1, 48.9, False)])
def test_lower_precisions_are_held_to_their_masks(agreement: float, after: float, passes: bool) -> None:
    score = Score(before=50.0, after=after, images=3, source="here")
    report = Report(comparisons=(comparison(0.3, agreement),), gate=LOWER, score=score)
    assert (not report.failures) == passes
    assert "50.00 in PyTorch" in report.table()


def test_another_shape_is_no_small_difference() -> None:
    with pytest.raises(ParityError, match=r"got shape \(2,\), expected \(3,\)"):
        difference(np.zeros(2, np.float32), np.zeros(3, np.float32))
