"""The benchmarks measure like against like: the published form's losses, gradient and masks are ours, and what it
holds, N x N maps, ours never makes."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.common.random_backbone import random_segmenter
from benchmarks.pipeline import optimize, optimize_side
from benchmarks.pipeline.optimize_side import Watch
from benchmarks.pipeline.published import PublishedInference, PublishedStep
from torch import Tensor

import backbones
from slime_optimize import Backbone, load_backbone
from slime_optimize.method.losses import Losses, Stepper, losses
from slime_optimize.method.prediction import Predictor
from slime_optimize.presets import BEST, PAPER, REFERENCE
from slime_optimize.segmenter import Segmenter
from slime_optimize.settings import Settings
from slime_was import finished, segment

PARTS = 5
SIDE = backbones.IMAGE_SIZE
SQUARE = backbones.LATENT_SIZE**4  # N x N elements; nothing else in the tiny UNet has as many


@pytest.fixture(scope="module", params=sorted(backbones.KINDS))
def double(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """Each kind in float64. The published code knows no velocity, so that it is left out here."""
    folder = backbones.build(tmp_path_factory.mktemp("double") / request.param, request.param)
    backbones.edit_config(folder, "scheduler", prediction_type="epsilon")
    return load_backbone(folder, dtype=torch.float64)


class Case:
    """The inputs of one step: latents, noise, mask, text, timestep."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        chance = torch.Generator().manual_seed(0)
        side = backbone.latent_size
        self.latents, self.noise = (torch.randn(1, 4, side, side, generator=chance).to(backbone.dtype) for _ in "ab")
        self.mask = torch.randint(0, PARTS, (1, side, side), generator=chance)
        self.text = torch.randn(1, 77, backbone.text_width, generator=chance).to(backbone.dtype).requires_grad_(True)
        self.timestep = torch.tensor([37])

    def published(self) -> Losses:
        backbone = self.backbone
        step = PublishedStep(
            unet=backbone.unet, scheduler=backbone.scheduler, empty_1TD=backbone.encode_text(""), parts=PARTS
        )
        return step.losses(self.latents, self.noise, self.timestep, self.mask[0], self.text)

    def ours(self, settings: Settings) -> Losses:
        stepper = Stepper(backbone=self.backbone, settings=settings, parts=PARTS, seed=0)
        noised = self.backbone.add_noise(self.latents, self.noise, self.timestep)
        return losses(stepper.answer(noised, self.timestep, self.text), self.mask, self.noise, settings)

    def gradient(self, result: Losses) -> Tensor:
        """Return the gradient of the learned rows."""
        (gradient,) = torch.autograd.grad(result.total, [self.text])
        return gradient[:, 1:PARTS]


def test_losses_and_gradient_equal_the_published_forms(double: Backbone) -> None:
    case = Case(double)
    published, ours = case.published(), case.ours(REFERENCE)
    for name in ("cross_entropy", "was", "diffusion", "total"):
        torch.testing.assert_close(getattr(ours, name), getattr(published, name), rtol=1e-5, atol=0)
    expected, found = case.gradient(published), case.gradient(ours)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5
    assert float(expected.abs().max()) > 1e-3


@pytest.mark.parametrize("settings", [REFERENCE, PAPER, BEST], ids=["guided", "plain", "best"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_no_square_map_is_made(folders: dict[str, Path], settings: Settings, dtype: torch.dtype) -> None:
    """Also where there are more parts than a head is wide."""
    for folder in folders.values():
        case = Case(load_backbone(folder, dtype=dtype))
        forward, backward = _watched(case, lambda: case.ours(settings))  # noqa: B023  called at once
        assert forward.largest < SQUARE and backward.largest < SQUARE


def test_the_watch_sees_the_published_forms_square_maps(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        case = Case(load_backbone(folder))
        forward, backward = _watched(case, case.published)
        assert forward.largest == PARTS * SQUARE and backward.largest >= SQUARE
        ours, _ = _watched(case, lambda: case.ours(REFERENCE))  # noqa: B023  called at once
        assert ours.peak_bytes < forward.peak_bytes / 2


def _watched(case: Case, step: Any) -> tuple[Watch, Watch]:
    with Watch() as forward:
        result = step()
    with Watch() as backward:
        case.gradient(result)
    return forward, backward


def test_the_watch_counts_what_is_alive() -> None:
    with Watch() as watch:
        first = torch.zeros(1000)
        view = first[:500]
        second = torch.ones(100)
        del first, view, second
        torch.zeros(400)
    assert (watch.largest, watch.peak_bytes) == (1000, 4400)


@pytest.fixture
def segmenter(double: Backbone) -> Segmenter:
    return random_segmenter(double, PARTS)


def _latents() -> Tensor:
    return torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("published", [False, True], ids=["plain", "reference"])
def test_masks_equal_ours(double: Backbone, segmenter: Segmenter, published: bool) -> None:
    """From the same latents and noise."""
    if published:
        segmenter = replace(segmenter, settings=REFERENCE.changed({"threshold": 0.05}))
    predictor, yardstick = Predictor(segmenter, double), PublishedInference.of(segmenter, double)
    scores = finished(*predictor.maps(_latents()), segmenter.settings.postprocess(SIDE))
    maps = yardstick.maps(_latents(), segmenter.noise.double())
    mask = yardstick.scores(*maps, SIDE).argmax(0)
    assert len(mask.unique()) > 1
    assert float((segment(scores, SIDE, SIDE) == mask).double().mean()) > 0.999
    assert not replace(yardstick, threshold=1.0).scores(*maps, SIDE).any()  # nothing passes: all is background


def test_published_inference_draws_anew_and_holds_both_halves_square_maps(
    double: Backbone, segmenter: Segmenter
) -> None:
    yardstick = PublishedInference.of(segmenter, double)
    pixels = torch.rand(1, 3, SIDE, SIDE, dtype=torch.float64)
    assert not torch.equal(yardstick.encode(pixels), yardstick.encode(pixels))
    top = double.unet.up_blocks[3].attentions[0].transformer_blocks[0].attn1.heads
    with Watch() as watch:
        maps = yardstick.maps(_latents())
    assert not torch.equal(maps[0], yardstick.maps(_latents())[0])
    assert watch.largest >= 2 * top * SQUARE
    assert watch.peak_bytes > 3 * 2 * top * SQUARE * 8  # the scores of three layers


def test_every_view_that_counts_is_encoded_in_a_step_that_counts(folders: dict[str, Path]) -> None:
    lesson = optimize_side.Ours(load_backbone(folders["sd15"]), PARTS, PAPER, 3)
    assert len(list(lesson._views)) == 1 + 3


def test_forecast_grows_with_pixels_and_parts(folders: dict[str, Path]) -> None:
    own = optimize_side.forecast(str(folders["sd15"]), None, PARTS)
    assert own["native"] == SIDE
    larger = optimize_side.forecast(str(folders["sd15"]), 128, 40)
    # 35 more parts are at least as many N x N maps of 32 x 32 latents, in single precision.
    assert larger["bytes"] - own["bytes"] > 35 * 32**4 * 4


def test_too_large_a_published_form_means_smaller_images_or_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 24 GB free, and a published form that needs 48 MB for each of 512 pixels."""

    def told(_module: str, _command: str, _backbone: str, *words: object) -> str:
        pixels = int(str(words[words.index("--pixels") + 1])) if "--pixels" in words else 512
        return f'{{"native": 512, "bytes": {48e6 * pixels}}}'

    def options(**changes: Any) -> argparse.Namespace:
        return argparse.Namespace(**{"pixels": None, "parts": 6, "device": "cpu"} | changes)

    monkeypatch.setattr(optimize, "python", told)
    monkeypatch.setattr(optimize.machine, "free_bytes", lambda: 24e9)
    pixels, notes = optimize._pixels(options(), "sd21")
    assert pixels == 384 and notes[0] == "at 512 px the published form needs 24.6 GB: both at 384 px"
    assert optimize._pixels(options(device="cuda", pixels=512), "sd21")[0] == 512
    with pytest.raises(optimize.BenchmarkError, match=r"24\.0 GB are free, both sides need about 30\.7 GB at 512 px"):
        optimize._pixels(options(pixels=512), "sd21")
