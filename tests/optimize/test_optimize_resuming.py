"""A run that was stopped goes on and ends as if it had not been; another run's checkpoint is left alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from painting import PARTS, ROOT, Files, Main, paint
from slime_optimize import Backbone, InputError, Segmenter, Settings
from slime_optimize.data.annotations import Example
from slime_optimize.data.validation import Validation
from slime_optimize.errors import OptimisationError
from slime_optimize.method.checkpoint import CHECKPOINT_FILE, Checkpoint, State
from slime_optimize.method.losses import Stepper
from slime_optimize.method.run import Run
from slime_optimize.method.training import Learned, learn

STEPS = 7


class Copying(Checkpoint):
    """Saves after every step, and keeps each one in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "now", every=0)
        self.folder = folder

    def save(self, state: State, identity: Mapping[str, Any]) -> None:
        super().save(state, identity)
        shutil.copytree(self.path.parent, self.folder / str(state.step))


@pytest.fixture
def this(loaded: dict[str, Backbone], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Two images, two views a step, steps encoded three at a time, measured at steps 2, 4, 6 and 7."""
    monkeypatch.setattr("slime_optimize.method.augmentation._PIXELS_AT_ONCE", 6 * 64 * 64)
    first, second, third = (
        Example(name=str(i), image_HW3=paint(i)[0], mask_HW=paint(i)[1], digest=str(i)) for i in range(3)
    )
    return Run(
        backbone=loaded["sd15"],
        examples=(first, second),
        parts=PARTS,
        settings=Settings(steps=STEPS, batch_size=2, recolour_probability=0.5, schedule="cosine", threshold=0.0),
        validation=Validation(examples=(third,), every=2),
    )


def assert_same(one: Learned, other: Learned) -> None:
    assert torch.equal(one.segmenter.text_embedding, other.segmenter.text_embedding)
    assert torch.equal(one.losses_SL, other.losses_SL)
    assert one.measured.iou_by_step == other.measured.iou_by_step
    assert one.snapshots.keys() == other.snapshots.keys()
    assert all(torch.equal(kept, other.snapshots[step]) for step, kept in one.snapshots.items())
    told = [{**each.segmenter.metrics, "seconds": 0} for each in (one, other)]
    assert told[0] == told[1]


def test_going_on_from_any_step(this: Run, tmp_path: Path) -> None:
    whole = learn(this, checkpoint=Copying(tmp_path), progress=False)
    assert list(whole.measured.iou_by_step) == [2, 4, 6, 7] and len(whole.losses_SL) == STEPS
    for step in (1, 2, 3, 5, STEPS):
        state = Checkpoint(tmp_path / str(step)).load(this.identity)
        assert state is not None and state.step == step and state.seconds > 0
        assert_same(learn(this, state=state, progress=False), whole)


def test_a_checkpoint_changes_nothing(this: Run, tmp_path: Path) -> None:
    assert_same(learn(this, checkpoint=Copying(tmp_path), progress=False), learn(this, progress=False))


def test_a_run_that_cannot_go_on_leaves_no_checkpoint(this: Run, tmp_path: Path) -> None:
    wild = replace(this, settings=replace(this.settings, learning_rate=1e37))
    checkpoint = Copying(tmp_path)
    with pytest.raises(OptimisationError):
        learn(wild, checkpoint=checkpoint, progress=False)
    assert (tmp_path / "1").is_dir() and not checkpoint.path.exists()


def test_another_runs_checkpoint_is_refused(this: Run, tmp_path: Path) -> None:
    checkpoint = Copying(tmp_path)
    learn(this, checkpoint=checkpoint, progress=False)
    image, mask = paint(0)
    mask[0, 0] = 1  # painted anew, on the same picture
    repainted = Example(name="0", image_HW3=image, mask_HW=mask, digest="0")
    others = {
        "seed: its 0, here 1": replace(this, seed=1),
        "learning_rate: its 0.1, here 0.2": replace(this, settings=replace(this.settings, learning_rate=0.2)),
        "training images": replace(this, examples=(repainted, this.examples[1])),
        "validation images": replace(this, validation=None),
        "backbone": replace(this, backbone=replace(this.backbone, hash="0" * 64)),
        'parts: its ["background", "red", "green"]': replace(this, parts=("background", "red", "lime")),
    }
    for expected, other in others.items():
        with pytest.raises(InputError, match="of another run") as caught:
            checkpoint.load(other.identity)
        assert expected in str(caught.value) and "\n" not in str(caught.value)
    assert checkpoint.load(this.identity) is not None


def test_a_damaged_checkpoint_is_told(this: Run, tmp_path: Path) -> None:
    checkpoint = Copying(tmp_path)
    learn(this, checkpoint=checkpoint, progress=False)
    for spoilt in (checkpoint.path.read_bytes()[:-9], b"", b"nothing of the kind"):
        checkpoint.path.write_bytes(spoilt)
        with pytest.raises(InputError, match=r"damaged .* begin anew with --restart"):
            checkpoint.load(this.identity)


@pytest.fixture
def words(files: Files, folders: dict[str, Path]) -> list[str]:
    """run.py's command line, without --out."""
    data = ["--image", str(files.image), "--mask", str(files.mask), "--parts", *PARTS]
    return [*data, "--backbone", str(folders["sd15"]), "--quiet", "--checkpoint-every", "0"]


def interrupted(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Ctrl-C as that step begins."""
    whole = Stepper.losses

    def losses(self: Stepper, *arguments: Any) -> Any:
        if arguments[-1] == at:
            raise KeyboardInterrupt
        return whole(self, *arguments)

    monkeypatch.setattr(Stepper, "losses", losses)


def test_interrupting_keeps_the_checkpoint(
    run: Main, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, out, straight = [*words, "--steps", "6"], tmp_path / "out", tmp_path / "straight"
    with pytest.MonkeyPatch.context() as patch:
        interrupted(patch, 0)
        assert run([*words, "--out", str(out)]) == 130
        assert "interrupted; nothing was written" in capsys.readouterr().err
    with pytest.MonkeyPatch.context() as patch:
        interrupted(patch, 4)
        assert run([*words, "--out", str(out)]) == 130
    assert f"{CHECKPOINT_FILE} is kept: the same command goes on from it" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == [CHECKPOINT_FILE]
    assert run([*words, "--out", str(out), "--seed", "1"]) == 2
    shown = capsys.readouterr()
    assert "seed: its 0, here 1" in shown.err and "--restart" in shown.err
    assert [path.name for path in out.iterdir()] == [CHECKPOINT_FILE]
    assert run([*words, "--out", str(out)]) == 0
    assert "goes on after step 4 of 6" in capsys.readouterr().out
    assert not (out / CHECKPOINT_FILE).exists()
    assert run([*words, "--out", str(straight)]) == 0
    assert torch.equal(Segmenter.load(out).text_embedding, Segmenter.load(straight).text_embedding)


def test_restart_begins_anew(run: Main, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*words, "--steps", "4", "--out", str(tmp_path / "out")]
    with pytest.MonkeyPatch.context() as patch:
        interrupted(patch, 2)
        assert run(words) == 130
    assert run([*words, "--seed", "1", "--restart"]) == 0
    assert "goes on" not in capsys.readouterr().out
    assert Segmenter.load(tmp_path / "out").seed == 1


def steps_done(checkpoint: Path) -> int:
    if not checkpoint.exists():
        return 0
    with safe_open(checkpoint, framework="pt") as file:
        return int(json.loads(file.metadata()["state"])["step"])


@pytest.mark.slow
def test_killed_in_the_middle(run: Main, words: list[str], tmp_path: Path) -> None:
    words, out, straight = [*words, "--steps", "40"], tmp_path / "out", tmp_path / "straight"
    command = [sys.executable, str(ROOT / "optimize" / "run.py"), *words, "--out", str(out)]
    process = subprocess.Popen(command, env=dict(os.environ), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while process.poll() is None and steps_done(out / CHECKPOINT_FILE) < 5:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 5 <= steps_done(out / CHECKPOINT_FILE) < 40 and not (out / "segmenter.json").exists()
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "goes on after step" in done.stdout
    assert sorted(p.name for p in out.iterdir() if CHECKPOINT_FILE in p.name) == []
    assert run([*words, "--out", str(straight)]) == 0
    resumed, whole = Segmenter.load(out), Segmenter.load(straight)
    assert torch.equal(resumed.text_embedding, whole.text_embedding)
    assert resumed.metrics["losses"] == whole.metrics["losses"]


def test_a_checkpoint_in_old_words_goes_on(this: Run, tmp_path: Path) -> None:
    old = {"recolour_probability": "recolour", "edge_tolerance": "guide", "part_schedule": "turns"}

    class Renaming(Copying):
        def save(self, state: State, identity: Mapping[str, Any]) -> None:
            words = {old.get(name, name): value for name, value in identity.items()}
            super().save(state, words | {"encoder": "kl"})

    learn(this, checkpoint=Renaming(tmp_path), progress=False)
    state = Checkpoint(tmp_path / "3").load(this.identity)
    assert state is not None and state.step == 3
