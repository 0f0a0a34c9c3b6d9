"""What is said of a run: before it, what will happen; after it, what was not learned, and what to try."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from painting import PARTS, Files, Main, paint
from slime_optimize import Backbone, Segmenter
from slime_optimize.backbone import EMBEDDED
from slime_optimize.data.annotations import Example
from slime_optimize.method.run import Run
from slime_optimize.method.training import Learned, learn
from slime_optimize.presets import PAPER
from slime_optimize.verdict import lost_parts, verdict


def test_a_run_says_what_it_will_do_and_what_came_of_it(
    run: Main, files: Files, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "blocks"
    words = ["--image", files.image, "--mask", files.mask, "--parts", *PARTS, "--backbone", folders["sd15"]]
    assert run([str(each) for each in (*words, "--steps", "8", "--device", "cpu", "--quiet", "--out", out)]) == 0
    plan, time, summary, *judged = capsys.readouterr().out.splitlines()
    source = "the default, because the backbone names none"
    for told in (str(folders["sd15"]), "on cpu", f"preset reference ({source})", "64 x 64", " 8 steps", *PARTS):
        assert told in plan
    assert plan.endswith(f"-> {out}")
    assert re.fullmatch(r"\d+\.\d\d s a step: about .* for the 2 steps that are left", time)
    assert summary.startswith(f"{out / 'segmenter.json'}: 3 parts, ")
    made = Segmenter.load(out)
    assert (made.preset, made.preset_from) == ("reference", source)
    assert set(made.metrics["losses_at_first"]) == set(made.metrics["losses"])
    # A random backbone of 8 steps: nobody would have it find everything.
    assert lost_parts(made.metrics) and judged[0].startswith("verdict: ")
    assert any(line.startswith("try: more steps: --steps 200") for line in judged)
    page = (out / "report.html").read_text()
    assert "<h1>blocks</h1>" in page and f"Made {made.created}" in page and "is no test" in page
    assert all(line.partition(": ")[2][1:] in page for line in judged)


@pytest.fixture(scope="module")
def finished(loaded: dict[str, Backbone]) -> tuple[Learned, Run]:
    image_HW3, mask_HW = paint()
    mask_HW = np.where(mask_HW == 2, 0, mask_HW)
    mask_HW[:4, :4] = 2  # a part of a few pixels
    example = Example(name="blocks", image_HW3=image_HW3, mask_HW=mask_HW, digest="0" * 64)
    run = Run(backbone=loaded["sd15"], examples=(example,), parts=PARTS, settings=PAPER.changed({"steps": 1}))
    return learn(run, progress=False), replace(run, settings=PAPER.changed({"steps": 200}))


def judged(finished: tuple[Learned, Run], ious: list[float], last: float = 1.0, **changes: Any) -> list[str]:
    """The verdict of a run of 200 steps from a loss of 2 to `last`, with these IoUs on its training image."""
    learned, run = finished
    metrics = {"training": {"iou": dict(zip(PARTS, ious, strict=True))}}
    losses_SL = torch.linspace(2, last, 200).reshape(-1, 1) * torch.tensor([[1.0, 0.0, 0.0]])
    learned = replace(learned, segmenter=replace(learned.segmenter, metrics=metrics), losses_SL=losses_SL)
    return verdict(learned, replace(run, **changes)).lines()


def test_a_run_that_learned_everything(finished: tuple[Learned, Run]) -> None:
    (line,) = judged(finished, [90, 20, 35])
    assert "every part is found" in line and "no test" in line and "slime evaluate" in line


def test_what_was_not_learned_is_named_with_what_to_try(finished: tuple[Learned, Run]) -> None:
    lines = judged(finished, [0.2, 50, 19.9])
    assert lines[:2] == [
        "verdict: the background is never found (IoU 0.2 % on the training data)",
        f"verdict: not learned: {PARTS[2]} 19.9 % IoU on the training data, under 20 %",
    ]
    tries = "\n".join(lines[2:])
    assert "--preset reference" in tries and f"cut closer to the thing: {PARTS[2]} cover under 6" in tries
    # Nothing that does not apply to this run.
    assert "--steps" not in tries and "--learning-rate" not in tries and "Stable Diffusion" not in tries
    assert "hardly found (IoU 12.0 %" in judged(finished, [12, 50, 50])[0]


def test_advice_follows_the_run(finished: tuple[Learned, Run]) -> None:
    _, run = finished
    short = "\n".join(judged(finished, [0, 9, 9], settings=PAPER.changed({"steps": 20, "learning_rate": 3.0})))
    assert "--steps 200" in short and "--learning-rate 0.1, as preset paper has" in short
    embedded = replace(run.backbone, id=EMBEDDED, recommended={"preset": "best"})
    told = "\n".join(judged(finished, [0, 9, 9], backbone=embedded))
    assert "--preset best" in told and "a Stable Diffusion checkpoint (--backbone)" in told


def test_a_loss_that_did_not_fall(finished: tuple[Learned, Run]) -> None:
    lines = judged(finished, [90, 80, 70], last=2.5)
    assert lines[0] == "verdict: the loss did not fall: 2.02 in the first tenth of the steps, 2.48 in the last"
    assert lines[1] == "try: a lower learning rate: --learning-rate 0.05"


def test_published_embeddings_have_no_figures_to_be_judged_by() -> None:
    assert lost_parts(json.loads('{"imported": {}}')) == {} == lost_parts({"training": {"iou": {"a": None}}})
