"""Segmenters that average passes, read BGR, merge patches or follow the image's edges: exported with the same masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from backbones import LATENT_SIZE
from slime_export.errors import ExportError
from slime_export.pipeline import export
from slime_export.repository import reading_of
from slime_export.request import Request
from slime_optimize.segmenter import Segmenter

OPTIONS: dict[str, dict[str, Any]] = {
    "best": {"readout": "parts", "rescale": True, "mirrored": True, "guide": 0.1},
    "passes": {"t_test": 100, "more_t": [300], "draws": 2},
    "published": {
        "channel_order": "bgr",
        "drop_background": True,
        "suppress": True,
        "rescale": True,
        "patches": 2,
        "patch_side": 0.75,
    },
}


def changed(folder: Path, settings: dict[str, Any]) -> Segmenter:
    """The segmenter in `folder` with other settings, written back."""
    made = Segmenter.load(folder)
    after = made.settings.changed(settings)
    noise = torch.randn(after.draws, 4, LATENT_SIZE, LATENT_SIZE, generator=torch.Generator().manual_seed(1))
    segmenter = replace(made, settings=after, noise=noise)
    segmenter.save(folder)
    return segmenter


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_exported_with_the_same_masks(name: str, tmp_path: Path, make_segmenter: Callable[..., Path]) -> None:
    folder = make_segmenter(tmp_path)
    segmenter = changed(folder, OPTIONS[name])
    _, report = export(Request(folder=folder, repository=tmp_path / "repository"), lambda _: None)
    assert not report.failures
    assert min(each.mask_agreement for each in report.comparisons) >= 0.999
    reading = reading_of(segmenter)
    config = (tmp_path / "repository" / reading.model / "config.pbtxt").read_text()
    assert f'string_value: "{segmenter.settings.channel_order}"' in config
    assert ("FITTED" in (tmp_path / "repository" / "car" / "config.pbtxt").read_text()) == (name == "best")


def test_more_crops_than_a_batch_are_refused(tmp_path: Path, make_segmenter: Callable[..., Path]) -> None:
    folder = make_segmenter(tmp_path)
    changed(folder, {"patches": 3, "patch_side": 0.5})
    with pytest.raises(ExportError, match="got 9 crops of an image, expected at most 8"):
        export(Request(folder=folder, repository=tmp_path / "repository"), lambda _: None)
    assert not (tmp_path / "repository").exists()
