"""The recordings hold, and each step of the arithmetic that is changed makes the check fail."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import check
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from check import Line, Recording

from slime_optimize.method import attention, losses, processors

RECORDINGS = Path(__file__).parent / "recordings"
Patch = pytest.MonkeyPatch


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15_k4", "sd21_k6"])
def test_the_reference_preset_reproduces_the_published_code(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = check.main([str(RECORDINGS / name)])
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert printed.count("ok  ") == 14
    assert "0 past tolerance" in printed


@pytest.fixture(scope="module")
def recording() -> Recording:
    return Recording.load(RECORDINGS / "sd21_k6")


def unscaled(patch: Patch) -> None:
    true = processors._TextAttnProcessor.attend
    patch.setattr(processors._TextAttnProcessor, "attend", lambda self, q, k, v, _scale: true(self, q, k, v, 1.0))


def softmax_over_the_parts(patch: Patch) -> None:
    def keep(self: Any, logits: torch.Tensor, _probs: torch.Tensor) -> None:
        of_parts = logits[..., : self.store.num_parts]
        self.store.logits[self.name] = of_parts.mean(1)
        self.store.cross[self.name] = of_parts.softmax(-1).mean(1)

    patch.setattr(processors._CrossAttnProcessor, "keep", keep)


def one_mean_over_all_heads(patch: Patch) -> None:
    true = processors._CrossAttnProcessor.keep
    mean_heads = (3 * 4 + 2 * 2) / 5  # of the five layers

    def keep(self: Any, logits: torch.Tensor, probs: torch.Tensor) -> None:
        true(self, logits, probs * (probs.shape[1] / mean_heads))

    patch.setattr(processors._CrossAttnProcessor, "keep", keep)


def enlarged_otherwise(**how: Any) -> Callable[[Patch], None]:
    class Functional:
        """torch.nn.functional as the maps see it; the UNet keeps the real one."""

        def __getattr__(self, name: str) -> Any:
            return getattr(F, name)

        def interpolate(self, maps: torch.Tensor, size: tuple[int, int], **_: Any) -> torch.Tensor:
            return F.interpolate(maps, size, **how)

    return lambda patch: patch.setattr(attention, "F", Functional())


def without_the_factor_k(patch: Patch) -> None:
    true = losses.was_loss
    patch.setattr(losses, "was_loss", lambda was, mask, reduction: true(was, mask, reduction) / was.shape[1])


def other_setting(name: str, value: Any) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(check, "REFERENCE", check.REFERENCE.changed({name: value}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "mutate", "caught_by"),
    [
        (check.maps, unscaled, "cross maps"),
        (check.maps, softmax_over_the_parts, "cross maps"),
        (check.maps, one_mean_over_all_heads, "cross maps"),
        (check.maps, enlarged_otherwise(mode="bilinear", align_corners=True), "cross maps"),
        (check.maps, enlarged_otherwise(mode="nearest"), "cross maps"),
        (check.masks, other_setting("rescale", False), "mask, threshold 0.0"),
        (check.masks, other_setting("suppress_first_part", False), "mask, threshold 0.0"),
        (check.training, without_the_factor_k, "loss 2, WAS"),
        (check.training, other_setting("guidance_scale", 99.0), "diffusion loss"),
        (check.training, other_setting("beta", 0.0051), "loss"),
        (check.training, other_setting("class_counts", "all"), "loss 1, cross entropy"),
    ],
)
def test_a_mutation_is_caught(
    recording: Recording, stage: Any, mutate: Callable[[Patch], None], caught_by: str, monkeypatch: Patch
) -> None:
    mutate(monkeypatch)
    first_off = next((line.name for line in stage(recording) if not line.holds), "nothing")
    assert first_off == caught_by


def test_a_line_holds_only_within_its_tolerance() -> None:
    assert Line(name="x", off=1e-5, allowed=1e-5).holds
    assert not Line(name="x", off=1.1e-5, allowed=1e-5).holds
    assert not Line(name="x", off=float("nan"), allowed=1e-5).holds


def test_the_command_fails_past_tolerance_and_without_a_recording(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check.main(["x"], checking=lambda _: [Line(name="cross maps", off=1.0, allowed=1e-5)]) == 1
    assert "OFF  cross maps" in capsys.readouterr().out
    assert check.main([str(tmp_path)]) == 2
    assert "error: recording" in capsys.readouterr().err


def test_arrays_are_what_the_readme_says(tmp_path: Path) -> None:
    shutil.copy(RECORDINGS / "sd15_k4" / "reference.npz", tmp_path)
    told = (RECORDINGS / "README.md").read_text()
    with np.load(tmp_path / "reference.npz") as arrays:
        assert not [name for name in arrays if f"`{name}`" not in told]
