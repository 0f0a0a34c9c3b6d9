"""The benchmark of a step measures like against like: the published form's losses and gradient are ours, and what it
holds, N x N maps, ours never makes."""

from __future__ import annotations

import argparse
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.published_step import PublishedStep
from benchmarks.watch import Watch
from diffusers import AutoencoderKL
from torch import Tensor

import backbones
from benchmarks import optimize, optimize_page, optimize_side
from painting import ROOT
from slime_optimize import Backbone, load_backbone
from slime_optimize.method.losses import Losses, Stepper, losses
from slime_optimize.presets import BEST, PAPER, REFERENCE
from slime_optimize.settings import Settings

PARTS = 5
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
            unet=backbone.unet,
            scheduler=backbone.scheduler,
            empty_1TD=backbone.encode_text(""),
            parts=PARTS,
        )
        return step.losses(self.latents, self.noise, self.timestep, self.mask[0], self.text)

    def ours(self, settings: Settings) -> Losses:
        stepper = Stepper(backbone=self.backbone, settings=settings, parts=PARTS, seed=0)
        noised = self.backbone.add_noise(self.latents, self.noise, self.timestep)
        return losses(stepper.answer(noised, self.timestep, self.text), self.mask, self.noise, settings)

    def gradient(self, result: Losses) -> Tensor:
        """Of the learned rows."""
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


def test_the_watch_sees_the_published_forms_square_maps(backbone: Backbone) -> None:
    case = Case(backbone)
    forward, backward = _watched(case, case.published)
    assert forward.largest == PARTS * SQUARE and backward.largest >= SQUARE
    ours, _ = _watched(case, lambda: case.ours(REFERENCE))
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


def test_published_form_encodes_a_sample(backbone: Backbone) -> None:
    step = optimize_side.Published(replace(backbone, vae=_copied(backbone.vae)), PARTS)
    (first, mask), (second, _) = step.encoded(), step.encoded()
    assert first.shape == second.shape == (1, 4, 16, 16) and not torch.equal(first, second)
    assert sorted(mask.unique().tolist()) == list(range(PARTS))


def _copied(vae: Any) -> Any:
    """What the published form takes the decoder from."""
    copy = AutoencoderKL.from_config(vae.config).eval()
    copy.load_state_dict(vae.state_dict())
    return copy


def test_a_side_steps_when_told(folders: dict[str, Path]) -> None:
    for side, told in (("published", ["published"]), ("ours", ["guided", "plain", "guided_reused", "plain_reused"])):
        taught = optimize_side.lessons(side, load_backbone(folders["sd21"]), PARTS, 2)
        before = {name: [each.detach().clone() for each in lesson._learned] for name, lesson in taught.items()}
        answers = io.StringIO()
        optimize_side.serve(taught, io.StringIO("".join(f"{name}\n" for name in told * 2)), answers)
        ready, *steps, last = [json.loads(line) for line in answers.getvalue().splitlines()]
        assert ready["device"] == "cpu" and len(steps) == 2 * len(told) and last["peak_bytes"] > 1e8
        assert all(step["encode"] > 0 and step["learn"] > 0 for step in steps)
        for name, lesson in taught.items():
            assert all(not torch.equal(*pair) for pair in zip(before[name], lesson._learned, strict=True))


def test_every_view_that_counts_is_encoded_in_a_step_that_counts(backbone: Backbone) -> None:
    lesson = optimize_side.Ours(backbone, PARTS, PAPER, 3)
    assert len(list(lesson._views)) == 1 + 3


def test_images_of_another_size(backbone: Backbone) -> None:
    smaller = optimize_side.sized(backbone, 48)
    assert (smaller.image_size, smaller.latent_size) == (48, 12)


def test_forecast_grows_with_pixels_and_parts(folders: dict[str, Path]) -> None:
    own = optimize_side.forecast(str(folders["sd15"]), None, PARTS)
    assert own["native"] == backbones.IMAGE_SIZE
    larger = optimize_side.forecast(str(folders["sd15"]), 128, 40)
    # 35 more parts are at least as many N x N maps of 32 x 32 latents, in single precision.
    assert larger["bytes"] - own["bytes"] > 35 * 32**4 * 4


def _options(**changes: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"pixels": None, "parts": 6, "device": "cpu"} | changes)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """24 GB free, and a published form that needs 48 MB for each of 512 pixels."""

    def told(_backbone: str, pixels: int | None, _parts: int) -> dict[str, float]:
        return {"native": 512, "bytes": 48e6 * (pixels or 512)}

    monkeypatch.setattr(optimize, "_forecast", told)
    monkeypatch.setattr(optimize, "free_bytes", lambda: 24e9)
    return monkeypatch


def test_too_large_a_published_form_means_smaller_images_and_says_so(machine: pytest.MonkeyPatch) -> None:
    pixels, notes = optimize._pixels(_options(), "sd21")
    assert pixels == 384 and notes[0] == "at 512 px the published form needs 24.6 GB: both at 384 px"
    assert optimize._pixels(_options(device="cuda", pixels=512), "sd21")[0] == 512


def test_too_little_memory_is_refused(machine: pytest.MonkeyPatch) -> None:
    with pytest.raises(optimize.BenchmarkError, match=r"24\.0 GB are free, both sides need about 30\.7 GB at 512 px"):
        optimize._pixels(_options(pixels=512), "sd21")


def _result(shape: str, **ms: float) -> dict[str, Any]:
    ms |= {f"{name}_reused": of - 400 for name, of in ms.items() if name != "published"}
    seconds = {of: [{"encode": 0.1, "learn": of / 1e3 - 0.1}, {"encode": 0.3, "learn": of / 1e3}] for of in ms.values()}
    rows = {name: optimize._row(seconds[of], 15e9 if name == "published" else 7e9) for name, of in ms.items()}
    machine = {"cpu": "A CPU", "device": "cpu", "threads": 2, "versions": {"torch": "2", "cuda": "None"}}
    about = {"pixels": 512, "parts": 6, "steps": 2, "notes": ["said so"], "machine": machine}
    return {"shape": shape, "rows": rows, "ratios": optimize._ratios(rows), **about}


def test_figures_of_the_table() -> None:
    result = _result("sd21", published=4000, guided=2000, plain=1000)
    assert result["rows"]["plain"] == {
        "ms": 1150.0,
        "least_ms": 1100.0,
        "most_ms": 1200.0,
        "encode_ms": 200.0,
        "learn_ms": 950.0,
        "peak_gb": 7.0,
    }
    ratios = {"guided": 1.93, "plain": 3.61, "guided_encoded": 2.13, "plain_encoded": 4.37, "memory": 2.14}
    ratios |= {"guided_reused": 2.37, "plain_reused": 5.53}
    assert result["ratios"] == ratios
    text = optimize_page.table(result)
    assert "| published form | 4150 | 4100 to 4200 | 200 | 15.00 GB | 1 |  | 1 |" in text
    assert "| 7.00 GB | 1.93 | 2.13 | 2.14 |" in text
    assert "guided at least 1.8: reached, plain at least 2.7: reached, guided_reused at least 1.8: reached, " in text
    assert "| 7.00 GB | 5.53 |  | 2.14 |" in text
    slow = optimize_page.table(_result("sd21", published=4000, guided=3000, plain=1000))
    assert "guided at least 1.8: not reached" in slow


def test_results_of_several_shapes_are_kept(tmp_path: Path) -> None:
    kept, page = tmp_path / "speed.json", tmp_path / "speed.md"
    for shape in ("embedded", "sd21"):
        optimize._keep(_result(shape, published=4000, guided=2000, plain=1000), kept, page)
    assert set(json.loads(kept.read_text())) == {"embedded", "sd21"}
    text = page.read_text()
    assert "## The embedded backbone" in text and "## SD-2.1-base's shapes" in text
    assert not list(tmp_path.glob(".*"))


def test_the_page_in_the_repository_is_of_its_figures() -> None:
    kept, shown = (ROOT / "docs" / f"optimise-speed.{ending}" for ending in ("json", "md"))
    assert shown.exists() == kept.exists()
    if kept.exists():
        assert shown.read_text() == optimize_page.page(json.loads(kept.read_text()))


@pytest.mark.slow
def test_the_whole_benchmark(folders: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "speed.json"
    words = ["--backbone", str(folders["sd15"]), "--steps", "1", "--threads", "1", "--json", str(kept)]
    assert optimize.main(words) == 0
    result = json.loads(kept.read_text())["sd15"]
    assert result["pixels"] == 64 and result["machine"]["threads"] == 1
    assert min(row["ms"] for row in result["rows"].values()) > 0
    assert "| published form |" in capfd.readouterr().out


def test_a_side_that_fails_is_told_in_one_line() -> None:
    with pytest.raises(optimize.BenchmarkError, match=r"^benchmarks\.none: ended with code 1; its own words"):
        optimize.python("benchmarks.none")
