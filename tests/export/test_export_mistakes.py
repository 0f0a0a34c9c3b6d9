"""A full disk, an export killed half-way, layers and options that do not fit: one line each, and nothing published."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from exporting import Exported, Snapshot, changed

from slime_export.graph import runtimes
from slime_optimize.settings import Settings
from slime_repository import layout

SCRIPT = Path(__file__).resolve().parents[2] / "export" / "build.py"
ONE_KIND = pytest.mark.parametrize("exported", ["sd15"], indirect=True)


@ONE_KIND
def test_a_disk_that_fills_up(mistake: Callable[..., str], exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(model: Any, path: str, **_: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    monkeypatch.setattr(onnx, "save_model", full)
    line = mistake(exported.repository, 1, exported.folder)
    assert "is full; free some of it, or give a --repository on another disk; nothing was published" in line


@ONE_KIND
def test_a_disk_without_room_is_seen_before_the_work(
    mistake: Callable[..., str], exported: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=20_000_000))
    line = mistake(tmp_path / "new", 1, exported.folder)
    assert "has 0.02 GB free, expected 0.05 GB for the export; free some" in line


@ONE_KIND
@pytest.mark.slow
def test_an_export_killed_half_way(exported: Exported, tmp_path: Path, snapshot: Callable[[Path], Snapshot]) -> None:
    repository = shutil.copytree(exported.repository, tmp_path / "models")
    before = snapshot(repository)
    command = [sys.executable, str(SCRIPT), str(exported.folder), "--repository", str(repository)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    said: list[str] = []
    with process:
        assert process.stdout
        for line in process.stdout:
            said.append(line)
            if line.startswith("tracing the UNet"):
                process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not [line for line in said if line.startswith("published")]
    left = [path for path in tmp_path.iterdir() if path.name.startswith(".models.")]
    assert left, "killed before it had begun"
    assert {name: each for name, each in snapshot(repository).items() if not name.startswith("../")} == {
        name: each for name, each in before.items() if not name.startswith("../")
    }
    again = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "published car version 2" in again.stdout
    assert layout.versions(repository / "car_unet") == [1, 2]
    # What the killed one left is gone.
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".models.")]


@ONE_KIND
@pytest.mark.parametrize("role", ["cross", "self"])
def test_a_layer_that_the_backbone_does_not_have(
    mistake: Callable[..., str], make_segmenter: Callable[..., Path], exported: Exported, tmp_path: Path, role: str
) -> None:
    folder = make_segmenter(tmp_path, exported.kind)
    ending = {"cross": "attn2", "self": "attn1"}[role]
    name = f"up_blocks.7.attentions.0.transformer_blocks.0.{ending}"
    changed(folder, {"layers": {"cross": Settings().layers.cross, "self": Settings().layers.self_} | {role: (name,)}})
    line = mistake(tmp_path / "new", 2, folder)
    assert f"attention layer {name}: not in this UNet; expected one of " in line


@ONE_KIND
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--encoder", "tiny"), "--encoder: got tiny, but the segmenter's embeddings were learned with vae"),
        (("--precision", "bf16"), "--precision bf16: no provider on this machine runs it"),
        (("--precision", "int8"), "give --calibration DIR"),
        (("--calibration", "."), "--calibration: is for --precision int8, got fp32"),
        (("--accelerator", "cuda", "--format", "tensorrt"), "--accelerator cuda: is for --format onnx, got tensorrt"),
        (("--format", "tensorrt"), "pip install"),
        (("--data", "/nowhere"), "/nowhere"),
        (("--at-least", "60"), "--at-least, --not-worse: are measured on annotated images; give --data FOLDER too"),
        (("--at-least", "0.6", "--data", "."), "--at-least: got 0.6, expected a mean IoU in percent, such as 65"),
    ],
)
def test_options_that_do_not_fit(
    mistake: Callable[..., str],
    exported: Exported,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert said in mistake(tmp_path / "new", 2, exported.folder, *options)


def test_bf16_where_a_gpu_is(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    there = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)
    assert runtimes.providers_for("bf16") == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert runtimes.providers_for("fp16") == ("CPUExecutionProvider",)
