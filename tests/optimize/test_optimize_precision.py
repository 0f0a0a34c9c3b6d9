"""bfloat16 while learning: taken where a measured step is shorter, told, and never what a mask is predicted with."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from painting import PARTS, Files, Main, paint
from slime_optimize import Backbone, Settings
from slime_optimize.data.annotations import Example
from slime_optimize.method import precision
from slime_optimize.method.attention import Attended, attend
from slime_optimize.method.precision import AUTO, BF16, BF16_BUT_ATTENTION, FP32, Decision, computing, decide, measured
from slime_optimize.method.run import Run, first_step, initial_text
from slime_optimize.method.training import learn

CPU = torch.device("cpu")
Taking = Callable[[Mapping[str, float]], Callable[[str], None]]


@pytest.fixture
def this(loaded: dict[str, Backbone]) -> Run:
    image, mask = paint(0)
    example = Example(name="0", image_HW3=image, mask_HW=mask, digest="0")
    return Run(backbone=loaded["sd15"], examples=(example,), parts=PARTS, settings=Settings(steps=4))


@pytest.fixture
def taking(monkeypatch: pytest.MonkeyPatch) -> Taking:
    """Return what makes steps that take so many seconds of a clock that stands still otherwise."""
    now = 0.0
    monkeypatch.setattr(precision.time, "perf_counter", lambda: now)

    def made(seconds: Mapping[str, float]) -> Callable[[str], None]:
        def step(name: str) -> None:
            nonlocal now
            now += seconds[name]

        return step

    return made


def amx(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    monkeypatch.setattr(precision, "has_amx", lambda: there)


@pytest.mark.parametrize(
    ("asked", "seconds", "expected"),
    [
        (AUTO, (10.0, 4.0, 3.0), BF16_BUT_ATTENTION),
        (AUTO, (10.0, 3.0, 4.0), BF16),
        (AUTO, (0.2, 0.5, 0.3), FP32),
        (AUTO, (1.0, 0.95, 0.97), FP32),  # nothing that pays
        (BF16, (1.0, 9.0, 8.0), BF16_BUT_ATTENTION),
    ],
)
def test_the_shortest_step_decides(
    asked: str, seconds: tuple[float, ...], expected: str, taking: Taking, monkeypatch: pytest.MonkeyPatch
) -> None:
    amx(monkeypatch, True)
    assert decide(asked, CPU) is None
    decision = measured(asked, taking(dict(zip((FP32, BF16, BF16_BUT_ATTENTION), seconds, strict=True))))
    assert decision.precision == expected
    assert "a step was measured" in decision.reason and f"{seconds[2]:.2f} s" in decision.reason


def test_nothing_is_measured_where_nothing_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def decided(asked: str, device: torch.device = CPU, kept: str | None = None) -> str:
        decision = decide(asked, device, kept)
        assert decision is not None, "a step would be measured"
        return decision.precision

    amx(monkeypatch, False)
    assert decided(AUTO) == FP32
    assert decided(AUTO, torch.device("cuda")) == FP32
    amx(monkeypatch, True)
    assert decided(FP32) == FP32
    assert decided(AUTO, kept=BF16) == BF16
    assert decided(AUTO, kept=FP32) == FP32
    assert decided(BF16, kept=BF16_BUT_ATTENTION) == BF16_BUT_ATTENTION
    assert decided(BF16, kept=FP32) == BF16  # which the checkpoint then refuses


def test_the_processors_flags_tell_of_amx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = tmp_path / "cpuinfo"
    monkeypatch.setattr(precision, "_CPU_FACTS", facts)
    assert not precision.has_amx()
    for flags, expected in (("avx512f avx512_bf16", False), ("avx512f amx_bf16 amx_tile", True)):
        facts.write_text(f"model name\t: a processor\nflags\t\t: {flags}\n")
        assert precision.has_amx() is expected


@pytest.mark.parametrize("name", [BF16, BF16_BUT_ATTENTION])
def test_what_computes_in_bfloat16(this: Run, name: str) -> None:
    backbone, latents = this.backbone, torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    size = backbone.latent_size
    latents = torch.nn.functional.interpolate(latents, (size, size))
    text = initial_text(backbone, this.settings, len(PARTS))

    def maps() -> Attended:
        return attend(backbone.unet, latents, torch.tensor(100), text, len(PARTS), this.settings.layers)

    with torch.no_grad():
        exact = maps()
        with computing(name, backbone.unet):
            rough = maps()
        again = maps()
    attention = torch.bfloat16 if name == BF16 else torch.float32
    assert {each.dtype for pair in rough.query_keys for each in pair} == {attention}
    difference = (rough.cross_BPhw - exact.cross_BPhw).abs().max()
    assert 0 < difference < 0.02
    assert torch.equal(again.cross_BPhw, exact.cross_BPhw)
    assert {each.dtype for each in backbone.unet.parameters()} == {torch.float32}


def test_embeddings_stay_near_those_of_float32(this: Run) -> None:
    exact = learn(this, progress=False)
    rough = learn(replace(this, precision=BF16_BUT_ATTENTION), progress=False)
    assert rough.segmenter.text_embedding.dtype == torch.float32
    assert not torch.equal(rough.losses_SL, exact.losses_SL)
    assert torch.allclose(rough.losses_SL, exact.losses_SL, rtol=0.05, atol=0.01)
    assert rough.segmenter.metrics["precision"] == BF16_BUT_ATTENTION


def test_measuring_changes_nothing(this: Run) -> None:
    before = learn(this, progress=False)
    step = first_step(this)
    for name in (FP32, BF16, BF16_BUT_ATTENTION):
        step(name)
    assert torch.equal(learn(this, progress=False).segmenter.text_embedding, before.segmenter.text_embedding)


def test_the_command(
    run: Main,
    files: Files,
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A run that is stopped goes on in the precision it began with, without measuring, and ends the same."""
    data = ["--image", str(files.image), "--mask", str(files.mask), "--parts", *PARTS, "--steps", "3", "--quiet"]
    words = [*data, "--backbone", str(folders["sd15"]), "--precision", "bf16", "--checkpoint-every", "0"]
    assert run([*words, "--out", str(tmp_path / "whole")]) == 0
    told = capsys.readouterr().out
    assert "precision bf16" in told and "a step was measured" in told
    made = json.loads((tmp_path / "whole" / "segmenter.json").read_text())
    assert made["metrics"]["precision"].startswith("bf16")
    assert "a step was measured" in (tmp_path / "whole" / "report.html").read_text()

    stopped, decision = tmp_path / "stopped", Decision(precision=made["metrics"]["precision"], reason="")
    with monkeypatch.context() as patch:
        patch.setattr("slime_optimize.commands.run.decide", lambda *_: decision)
        patch.setattr("slime_optimize.method.training.Trainer._record", _Interrupted())
        assert run([*words, "--out", str(stopped)]) == 130
    monkeypatch.setattr(precision, "has_amx", lambda: pytest.fail("a checkpoint says what to compute in"))
    otherwise = [*words[: words.index("--precision")], "--precision", "fp32", "--out", str(stopped)]
    assert run(otherwise) == 2
    assert "of another run (precision: its" in capsys.readouterr().err
    assert run([*words, "--out", str(stopped)]) == 0
    same = json.loads((stopped / "segmenter.json").read_text())
    assert same["metrics"]["losses"] == made["metrics"]["losses"]
    assert run([*otherwise, "--restart"]) == 0
    assert json.loads((stopped / "segmenter.json").read_text())["metrics"]["precision"] == FP32


class _Interrupted:
    """Ctrl-C after the second step."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> bool:
        self.calls += 1
        if self.calls == 2:
            raise KeyboardInterrupt
        return True
