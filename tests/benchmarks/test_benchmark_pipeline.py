"""The pipeline benchmark and the training step's run on tiny backbones: files are made once, sides answer, and the
whole commands give figures."""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.common.sides import BenchmarkError, MissingError, python
from benchmarks.pipeline import exports as exports_module
from benchmarks.pipeline import optimize
from benchmarks.pipeline.exports import Exports
from benchmarks.pipeline.side import STAGES, opened, serve
from benchmarks.pipeline.torch_side import Graphed
from torch import Tensor

from painting import ROOT
from slime_optimize import load_backbone

pipeline = import_module("benchmarks.pipeline.__main__")


@pytest.fixture(scope="module")
def exports(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return Exports.of(load_backbone(folders["sd15"]), tmp_path_factory.mktemp("work"))


def _masks(exports: Exports, tmp_path: Path, kind: str, encoder: str = "", unet: str = "", **more: Any) -> Any:
    """Return the masks of three pictures, after single images, a batch, and multiply-accumulates."""
    paths = {"encoder": encoder, "unet": unet} if unet else {}
    given = {"kind": kind, "device": "cpu", "threads": 1, "session": "served", "pixels": 64, "backbone": None}
    given |= {"openvino": None} | more
    side = opened(
        argparse.Namespace(
            **given,
            **{name: Path(exports.made(form, "5")["path"]) for name, form in paths.items()},
            segmenter=exports.segmenter("5"),
        )
    )
    orders = [{"batch": 1, "side": 64}, {"batch": 2, "side": 96}, {"save": f"{tmp_path}/m.npy"}, {"count": True}]
    told = io.StringIO()
    try:
        serve(side, io.StringIO("".join(json.dumps(each) + "\n" for each in orders)), told)
    finally:
        side.close()
    ready, one, two, saved, counted, last = [json.loads(line) for line in told.getvalue().splitlines()]
    assert (ready["device"], ready["threads"]) == ("cpu", 1) and last["peak_bytes"] > 1e7
    for each in (one, two):
        assert set(each["seconds"]) == {*STAGES, "total"} and each["seconds"]["unet"] > 0
        assert sum(each["seconds"][stage] for stage in STAGES) <= each["seconds"]["total"]
    assert (counted["macs"] > 0) == (not unet)
    masks = np.load(saved["saved"])
    assert masks.shape == (3, 64, 64) and masks.max() < 5
    return masks


@pytest.mark.slow
def test_exact_variants_give_the_same_masks(exports: Exports, tmp_path: Path) -> None:
    expected = _masks(exports, tmp_path, "torch", "encoder")
    for form, session in (("averaged", "served"), ("weighted", "no arena")):
        masks = _masks(exports, tmp_path, "served", "encoder", form, session=session)
        assert float((masks == expected).mean()) > 0.999
    masks = _masks(exports, tmp_path, "served", "encoder", "weighted", openvino="fp32")
    assert float((masks == expected).mean()) > 0.999
    half = _masks(exports, tmp_path, "fp16", "encoder")
    assert float((half == expected).mean()) > 0.9  # these weights' maps are flat, so that halves tip many pixels
    served = _masks(exports, tmp_path, "served", "encoder_fp16", "weighted_fp16")
    assert float((served == expected).mean()) > 0.9
    _masks(exports, tmp_path, "fp16_tiny", "tiny_encoder")
    _masks(exports, tmp_path, "published", "encoder")


@pytest.mark.triton
def test_behind_the_server(exports: Exports, tmp_path: Path) -> None:
    for form in ("averaged", "weighted"):
        expected = _masks(exports, tmp_path, "served", "encoder", form)
        masks = _masks(exports, tmp_path, "triton", "encoder", form)
        assert float((masks == expected).mean()) > 0.999
    masks = _masks(exports, tmp_path, "triton", "encoder", "weighted", openvino="fp32")
    assert float((masks == expected).mean()) > 0.999
    assert not list(exports.folder.glob("tmp*"))


def test_files_are_made_once_and_whole(exports: Exports, monkeypatch: pytest.MonkeyPatch) -> None:
    first = exports.made("encoder", "5")
    written = Path(first["path"]).stat().st_mtime_ns
    assert exports.made("encoder", "7") == first and Path(first["path"]).stat().st_mtime_ns == written

    def failing(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(exports_module.onnx_export, "write", failing)
    with pytest.raises(OSError, match="disk full"):
        exports.made("averaged", "3")
    assert not (exports.folder / "averaged-3").exists()


def test_what_cannot_run_says_why(
    folders: dict[str, Path], tmp_path: Path, exports: Exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = Exports.of(load_backbone(folders["sd21"]), tmp_path)
    with pytest.raises(MissingError, match="has no tiny_vae"):
        without.made("tiny_encoder", "5")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingError, match=r"pip install 'slime-serve\[gpu\]'"):
        exports.made("encoder_plan", "5")
    with pytest.raises(MissingError, match="CUDA graphs need a GPU"):
        _masks(exports, tmp_path, "fp16_graph", "encoder")


def test_other_code_or_weights_mean_other_files(
    exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, before = exports.backbone, exports.folder.name
    assert Exports.of(backbone, tmp_path).folder.name == before
    assert Exports.of(replace(backbone, hash="b2" * 32), tmp_path).folder.name != before
    monkeypatch.setattr(exports_module, "_DECISIVE", (exports_module,))
    assert Exports.of(backbone, tmp_path).folder.name != before


class Graph:
    """Stands in for a CUDA graph: what is computed while it is recorded is computed again by `replay`, in place."""

    recording: Graph | None = None

    def __init__(self) -> None:
        self.module: Any = None
        self.given: Any = None
        self.made: Any = None

    def replay(self) -> None:
        for made, new in zip(self.made, self.module(self.given), strict=True):
            made.copy_(new)


def test_a_graph_is_replayed_on_new_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    class Stream:
        def wait_stream(self, _: Any) -> None:
            calls.append("wait")

    def networks(pixels: Tensor) -> tuple[Tensor, Tensor]:
        made = pixels * 2, pixels + 1
        if Graph.recording:
            Graph.recording.module, Graph.recording.given, Graph.recording.made = networks, pixels, made
        return made

    @contextmanager
    def recorded(graph: Graph) -> Iterator[None]:
        Graph.recording = graph
        yield
        Graph.recording = None

    @contextmanager
    def aside(_: Stream) -> Iterator[None]:
        yield

    for name, stand_in in {"Stream": Stream, "CUDAGraph": Graph, "graph": recorded, "stream": aside}.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream())
    graphed = Graphed(networks, torch.zeros(2, 3))
    for value in (1.0, 5.0):
        doubled, next_ = graphed(torch.full((2, 3), value))
        assert doubled.eq(2 * value).all() and next_.eq(value + 1).all()
    assert calls == ["wait", "wait"]


@pytest.mark.slow
@pytest.mark.parametrize("large", [False, True], ids=["resident", "in turns"])
def test_the_whole_benchmark(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    if large:
        monkeypatch.setattr(pipeline, "_LARGE", 0)
    words = ["--backbone", str(folders["sd21"]), "--rounds", "1", "--batches", "1", "2", "--threads", "1"]
    words += ["--parts", "3", "--variants", "published", "torch", "weighted", "tiny", "fp16_graph"]
    places = ["--work", str(tmp_path), "--json", str(tmp_path / "kept.json"), "--page", str(tmp_path / "page.md")]
    assert pipeline.main([*words, *places]) == 0
    result = json.loads((tmp_path / "kept.json").read_text())["sd21"]
    assert set(result["rows"]) == {"published", "torch", "weighted"} and "tiny_vae" in result["missing"]["tiny"]
    assert result["missing"]["fp16_graph"] == "CUDA graphs need a GPU"
    assert result["agreement"]["weighted"] > 0.999 and result["resident"] != large
    assert result["rows"]["weighted"]["peak_gb"] < result["rows"]["published"]["peak_gb"]
    assert set(result["rows"]["torch"]["images_per_second"]) == {"1", "2"}
    assert result["machine"]["versions"]["onnxruntime"]
    assert (tmp_path / "page.png").exists() and "page.png" in (tmp_path / "page.md").read_text()


@pytest.mark.slow
def test_the_training_steps_benchmark(
    folders: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "speed.json"
    words = ["--backbone", str(folders["sd15"]), "--steps", "1", "--threads", "1", "--json", str(kept)]
    assert optimize.main(words) == 0
    result = json.loads(kept.read_text())["sd15"]
    assert result["pixels"] == 64 and result["machine"]["threads"] == 1
    assert min(row["ms"] for row in result["rows"].values()) > 0
    assert "| published form |" in capfd.readouterr().out


def test_a_side_that_fails_is_told_in_one_line() -> None:
    with pytest.raises(BenchmarkError, match=r"^benchmarks\.none: ended with code 1; its own words"):
        python("benchmarks.none")


@pytest.mark.parametrize(
    ("shape", "said"),
    [("sd21", "error: nvidia-smi: not found"), ("sd3", "error: shape: got 'sd3', expected sd21, sd15 or embedded")],
)
def test_the_gpus_script_says_what_is_missing(tmp_path: Path, shape: str, said: str) -> None:
    for tool in ("dirname", "bash"):  # and no nvidia-smi
        found = next(Path(folder, tool) for folder in os.defpath.split(":") if Path(folder, tool).exists())
        (tmp_path / tool).symlink_to(found)
    script = subprocess.run(
        ["bash", ROOT / "benchmarks" / "gpu.sh", shape], env={"PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert script.returncode == 2
    assert script.stderr.startswith(said)
    assert script.stderr.count("\n") == 1
