"""Segmenters that average passes, read BGR, merge patches or follow the image's edges: exported with the same masks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from exporting import OPTIONS, changed, names

from slime_export.errors import ExportError, ServerError
from slime_export.graph.runtimes import OnnxModel
from slime_export.graph.tracing import trace_unet
from slime_export.options import ExportOptions
from slime_export.pipeline import export
from slime_export.proof import parity
from slime_export.proof.references import answered
from slime_export.proof.report import Report
from slime_export.publish.publication import reading_of
from slime_optimize.method.prediction import load_predictor
from slime_repository.variant import Variant


@pytest.mark.parametrize("name", names(OPTIONS))
def test_exported_with_the_same_masks(name: str, tmp_path: Path, make_segmenter: Callable[..., Path]) -> None:
    folder = make_segmenter(tmp_path)
    segmenter = changed(folder, OPTIONS[name])
    _, report = export(ExportOptions(folder=folder, repository=tmp_path / "repository"), lambda _: None)
    assert not report.failures
    assert min(each.mask_agreement for each in report.comparisons) >= 0.999
    reading = reading_of(segmenter)
    config = (tmp_path / "repository" / reading.model / "config.pbtxt").read_text()
    assert f'string_value: "{segmenter.settings.channel_order}"' in config
    assert ("GUIDE_IMAGE" in (tmp_path / "repository" / "car" / "config.pbtxt").read_text()) == (name == "best")


@pytest.mark.parametrize("name", names(OPTIONS))
def test_the_weighted_form_gives_the_same_masks(name: str, tmp_path: Path, make_segmenter: Callable[..., Path]) -> None:
    folder = make_segmenter(tmp_path)
    changed(folder, OPTIONS[name])
    predictor = load_predictor(folder)
    images = parity.trial_images(predictor)
    expected = answered(predictor, images, weighted=True, own_error=False)
    alike = [(mask == found).mean() for mask, found in zip(predictor.masks(images), expected.masks, strict=True)]
    assert min(alike) >= 0.999, alike  # rounding may turn a pixel of a network that knows nothing
    unet = trace_unet(predictor, Variant(maps="weighted"), tmp_path / "unet", 10**9)
    report = Report(comparisons=parity.measured(expected, OnnxModel(unet / "model.onnx")))
    assert not report.failures
    assert {"CROSS", "ACCUMULATED", "POSTPROCESS"} == set(report.comparisons[0].tensors)


@pytest.mark.parametrize("embedding", ["baked", "shared"])
@pytest.mark.parametrize("url", [None, "127.0.0.1:9"])
def test_what_cannot_be_served_is_refused_before_the_work(
    tmp_path: Path, make_segmenter: Callable[..., Path], embedding: str, url: str | None
) -> None:
    """More crops than a batch holds, in either form; and a server that is not there, before a backbone is loaded."""
    folder, said = make_segmenter(tmp_path), list[str]()
    changed(folder, {"patches": 3, "patch_side": 0.5})
    options = ExportOptions(folder=folder, repository=tmp_path / "repository", embedding=embedding, url=url)
    told = "server 127.0.0.1:9" if url else "got 9 crops of an image, expected at most 8"
    with pytest.raises((ExportError, ServerError), match=told):
        export(options, said.append)
    assert len(said) == (0 if url else 1) and not (tmp_path / "repository").exists()
