"""The tiny encoder's training: its targets, a kill on the way, and what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from slime_backbone import card, distillation, training
from slime_backbone.distillation import (
    Lesson,
    Recipe,
    changed_views,
    distil,
    lesson_of,
    relative_error,
    vae_digest,
)
from slime_backbone.models import build_tiny_vae, build_vae
from slime_backbone.scene import scene
from slime_backbone.tiny import save_tiny
from slime_backbone.training import Run, TrainingError
from slime_optimize.backbone import load_tiny

CPU = torch.device("cpu")
RECIPE = Recipe(scenes=4, views=4, steps=6, batch=4)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VAE that never learned."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    vae = build_vae()
    vae.register_to_config(scaling_factor=0.5)
    vae.save_pretrained(folder / "vae")
    return folder


@pytest.fixture(scope="module")
def whole(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return distil(weights, tmp_path_factory.mktemp("state"), RECIPE, CPU, workers=1)


def images(count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.stack([scene("car", "backbone", i).image for i in range(count)])


@pytest.mark.parametrize("dies_at", [1, 5])
def test_killed_and_resumed_is_uninterrupted(
    dies_at: int, weights: Path, whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SAVE_EVERY", 0.0)
    loss = distillation._loss

    def dying(tiny: Any, lessons: Any, step: int, *more: Any) -> Any:
        if step == dies_at:
            raise KeyboardInterrupt
        return loss(tiny, lessons, step, *more)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(distillation, "_loss", dying)
        distil(weights, tmp_path, RECIPE, CPU, workers=1)
    resumed = distil(weights, tmp_path, RECIPE, CPU, workers=1)
    assert [session["first"] for session in resumed.sessions] == [0, dies_at]
    assert resumed.history == whole.history and len(whole.history) == RECIPE.steps
    for name, value in whole.average.items():
        assert torch.equal(resumed.average[name], value), name


def test_the_seed_decides(weights: Path, whole: Run, tmp_path: Path) -> None:
    other = distil(weights, tmp_path, Recipe(scenes=4, views=4, steps=1, batch=4, seed=1), CPU, workers=1)
    assert other.history[0] != whole.history[0]
    with pytest.raises(TrainingError, match="was begun with another seed; give the same, or another --state"):
        distil(weights, tmp_path, RECIPE, CPU, workers=1)


def test_the_targets_are_scaled_means(weights: Path) -> None:
    lesson = lesson_of(weights, images(2))
    vae = AutoencoderKL.from_pretrained(weights / "vae")
    pixels = torch.from_numpy(images(2)).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        expected = 0.5 * vae.encode(pixels).latent_dist.mean
    torch.testing.assert_close(torch.from_numpy(lesson.latents).float(), expected, rtol=1e-2, atol=1e-3)
    both = lesson.batch(np.array([1, 1]))
    torch.testing.assert_close(both[0], pixels[[1, 1]])


def test_the_error_is_relative(weights: Path) -> None:
    tiny = build_tiny_vae()
    for weight in tiny.parameters():
        torch.nn.init.zeros_(weight)
    lesson = lesson_of(weights, images(3))
    assert relative_error(tiny, lesson, batch=2) == pytest.approx(1)  # nothing, in place of everything
    exact = Lesson(images=lesson.images, latents=np.zeros_like(lesson.latents) + np.float16(0.5))
    torch.nn.init.constant_(tiny.encoder.layers[-1].bias, 0.4)
    assert relative_error(tiny, exact) == pytest.approx(0.2, rel=1e-3)


def test_views_are_pictures_of_their_own_and_the_same_again() -> None:
    pictures = images(2)
    views = changed_views(pictures, 5, seed=3)
    assert views.shape == (5, 128, 128, 3) and views.dtype == np.uint8
    np.testing.assert_array_equal(views, changed_views(pictures, 5, seed=3))
    assert (views != changed_views(pictures, 5, seed=4)).any()
    assert all((view != picture).mean() > 0.1 for view in views for picture in pictures)


def test_what_is_saved_loads_as_a_backbones_tiny_encoder(weights: Path, whole: Run, tmp_path: Path) -> None:
    (tmp_path / "vae").symlink_to(weights / "vae")
    for _ in range(2):  # a second time it takes the first one's place
        folder = save_tiny(tmp_path, whole, RECIPE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny_vae", "vae"]
    tiny = load_tiny(tmp_path, None, 4, "cpu", torch.float32)
    assert tiny is not None
    latents = tiny.encode(torch.rand(1, 3, 128, 128))
    expected = whole.modules["encoder"].half().float()
    assert latents.shape == (1, 4, 32, 32)
    for name, weight in tiny.model.encoder.state_dict().items():
        torch.testing.assert_close(weight, expected.state_dict()[name])
    assert not any(weight.any() for weight in tiny.model.decoder.parameters())
    record = json.loads((folder / "training.json").read_text())
    assert (record["vae"], record["step"]) == (vae_digest(weights), RECIPE.steps)
    assert record["multiplications"] == {"tiny": 76_087_296, "kl": 525_664_256}
    section = " ".join("".join(card._tiny(tmp_path)).split())
    assert "76 million" in section and "in place of 526 (6.9 times fewer)" in section and "in 6 steps" in section
    assert not card._tiny(weights)


def test_the_script(
    weights: Path, tmp_path: Path, distil_script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert distil_script.main(["--weights", str(tmp_path), "--state", str(tmp_path / "state")]) == 1
    assert "has no vae/diffusion_pytorch_model.safetensors" in capsys.readouterr().err
    (tmp_path / "vae").symlink_to(weights / "vae")
    small = ["--scenes", "2", "--views", "2", "--steps", "1", "--batch", "2", "--workers", "1", "--threads", "1"]
    assert distil_script.main(["--weights", str(tmp_path), "--state", str(tmp_path / "state"), *small]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "tiny_vae")
