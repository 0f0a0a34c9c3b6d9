"""The GPU's benchmark, on the CPU with tiny networks: all of it but what CUDA alone does, which a stand-in plays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fake_tensorrt
import pytest
import torch
from benchmarks.gpu_networks import Graphed, Networks, masks
from torch import Tensor

from backbones import build, build_tiny
from benchmarks import gpu, gpu_page
from painting import ROOT
from slime_export.graph import onnx_export as onnx
from slime_export.graph.networks import Encoder, MapsUNet
from slime_export.graph.onnx_export import Signature
from slime_optimize.backbone import load_backbone
from slime_optimize.method.prediction import Predictor
from slime_repository import contract
from slime_repository.contract import Versions
from slime_repository.variant import Variant
from slime_was.tensors import ACCUMULATED, CROSS, LATENTS, PIXELS, POSTPROCESS

PARTS = 5
FORM = Variant(maps="weighted")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build(tmp_path_factory.mktemp("gpu") / "backbone", "sd15")
    build_tiny(folder / "tiny_vae")
    loaded = load_backbone(folder)
    gpu.random_segmenter(loaded, PARTS).save(folder / gpu.SEGMENTER)
    return folder


@pytest.fixture(scope="module")
def repository(backbone: Path) -> Path:
    """The backbone's segmenter as export/build.py --maps weighted lays it out."""
    loaded, segmenter = load_backbone(backbone), gpu.Segmenter.load(backbone / gpu.SEGMENTER)
    folder, side, latent = backbone.parent / "repository", loaded.image_size, loaded.latent_size
    unet_name = contract.unet_name("gpu", FORM)
    maps = {CROSS: (-1, latent, latent), ACCUMULATED: (-1, latent, latent), POSTPROCESS: (8,)}
    networks = {
        "vae_encoder": (
            Encoder(loaded),
            Signature(inputs={PIXELS: (3, side, side)}, outputs={LATENTS: (4, latent, latent)}),
        ),
        unet_name: (
            MapsUNet(segmenter, loaded, weighted=True),
            Signature(inputs={LATENTS: (4, latent, latent)}, outputs=maps),
        ),
    }
    for name, (module, signature) in networks.items():
        (folder / name / "1").mkdir(parents=True)
        onnx.write(module, signature, folder / name / "1")
    (folder / "gpu" / "1").mkdir(parents=True)
    ensemble = contract.ensemble_config(segmenter="gpu", versions=Versions(), parameters={}, variant=FORM)
    (folder / "gpu" / "config.pbtxt").write_text(ensemble)
    return folder


def measured(backbone: Path, folder: Path, *arguments: str) -> dict[str, Any]:
    words = ["--backbone", str(backbone), "--device", "cpu", "--turns", "2", "--batches", "1", "2"]
    kept = ["--json", str(folder / "gpu.json"), "--page", str(folder / "gpu.md")]
    assert gpu.main([*words, *kept, *arguments]) == 0
    result: dict[str, Any] = json.loads((folder / "gpu.json").read_text())[backbone.name]
    return result


@pytest.mark.slow
def test_every_row_gives_the_masks_of_fp32(
    backbone: Path, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt.module())
    monkeypatch.setattr(gpu, "LEAST_AGREEMENT", 0.9)  # these weights' maps are flat, so that halves tip many pixels
    result = measured(backbone, tmp_path, "--repository", str(repository))
    assert set(result["rows"]) == {"published", "fp32", "fp16", "tiny", "onnx", "tensorrt"}
    for name, batches in result["rows"].items():
        assert set(batches) == {"1", "2"}
        for row in batches.values():
            assert row["agreement"] > (0.9 if name in ("fp16", "tiny") else 0.999), name
            assert row["least_ms"] <= row["ms"] <= row["most_ms"]
    assert result["rows"]["published"]["1"]["ratio"] == 1.0
    assert result["not_run"] == {"graph": "CUDA graphs need a GPU", "tiny_graph": "CUDA graphs need a GPU"}
    plan = repository.with_name("repository-engines") / contract.unet_name("gpu", FORM) / "model.plan"
    assert json.loads(plan.read_bytes())["profiles"] == [{LATENTS: [[size, 4, 16, 16] for size in (1, 2, 2)]}]
    page = (tmp_path / "gpu.md").read_text()
    assert "| published form, fp32 |" in page
    assert "Not run: ours, fp16, CUDA graph (CUDA graphs need a GPU)." in page


def test_what_cannot_run_is_left_out_and_says_why(
    backbone: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = gpu._arguments(["--backbone", str(backbone), "--device", "cpu", "--repository", str(repository)])
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    bench = gpu.Bench(str(backbone), None, options)
    names = [way.name for way in bench.ways()]
    assert "onnx" in names and "tensorrt" not in names
    assert "pip install 'slime-serve[gpu]'" in bench.not_run["tensorrt"]
    options.repository = None
    bench.ways()
    assert bench.not_run["onnx"] == "no --repository with a segmenter was given"


def test_a_row_without_the_memory_is_left_out(backbone: Path) -> None:
    def prepared(_: Tensor) -> gpu.Run:
        raise torch.OutOfMemoryError("CUDA out of memory")

    options = gpu._arguments(["--backbone", str(backbone), "--device", "cpu", "--turns", "1"])
    bench = gpu.Bench(str(backbone), None, options)
    pixels = gpu._pixels(bench.backbone, 1)
    with torch.no_grad():
        found = gpu._of_batch(bench, [gpu.Way(name="graph", prepared=prepared), bench.ways()[1]], pixels)
    assert list(found) == ["fp32"]
    assert bench.not_run["graph"] == "batch 1: not enough memory"


def test_networks_are_the_predictors(backbone: Path) -> None:
    loaded, segmenter = load_backbone(backbone), gpu.Segmenter.load(backbone / gpu.SEGMENTER)
    predictor = Predictor(segmenter, loaded)
    postprocess = segmenter.settings.postprocess(loaded.image_size)
    networks = Networks(Encoder(loaded), MapsUNet(segmenter, loaded), postprocess)
    images = [gpu.picture(loaded.image_size, seed) for seed in range(3)]
    with torch.no_grad():
        got = masks(networks(gpu._pixels(loaded, 3)), postprocess, loaded.image_size)
    for mine, theirs in zip(got, predictor.masks(images), strict=True):
        assert (mine.numpy() == theirs).mean() > 0.999


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


def test_the_page_tells_what_was_aimed_at() -> None:
    row = {"ms": 9.0, "least_ms": 8.5, "most_ms": 9.5, "rate": 111.0, "ratio": 6.0, "peak_gb": 3.0, "agreement": 0.995}
    result = {
        "shape": "sd21",
        "pixels": 512,
        "parts": 6,
        "batches": [1],
        "turns": 20,
        "rows": {"graph": {"1": row}, "tiny_graph": {"1": row}},
        "not_run": {"tensorrt": "no engine"},
        "machine": {"device": "A card", "threads": 1, "versions": {"torch": "2.13"}, "tf32": {"convolutions": True}},
    }
    told = gpu_page.table(result)
    assert "ours, fp16, CUDA graph: aim 100 images/s, reached" in told
    assert "ours, fp16, tiny encoder, CUDA graph: aim 150 images/s, not reached" in told
    assert "ours, fp16, CUDA graph: aim 5 times, reached" in told
    assert "| ours, fp16, CUDA graph | 9.0 | 8.5 to 9.5 | 111.0 | 6.00 | 3.00 GB | 99.50 % |" in told


def test_disagreement_fails() -> None:
    rows = {
        "fp16": {"8": {"agreement": 0.98}},
        "fp32": {"8": {"agreement": 1.0}},
        "onnx": {"8": {"agreement": float("nan")}},
    }
    found = gpu.disagreements({"rows": rows})
    assert found[0] == "ours, fp16, batch 8: 98.00 % of pixels are those of fp32, expected 99 %"
    assert len(found) == 2


@pytest.mark.parametrize(
    ("shape", "said"),
    [("sd21", "error: nvidia-smi: not found"), ("sd3", "error: shape: got 'sd3', expected sd21, sd15 or embedded")],
)
def test_the_script_says_what_is_missing(tmp_path: Path, shape: str, said: str) -> None:
    for tool in ("dirname", "bash"):  # and no nvidia-smi
        found = next(Path(folder, tool) for folder in os.defpath.split(":") if Path(folder, tool).exists())
        (tmp_path / tool).symlink_to(found)
    script = subprocess.run(
        ["bash", ROOT / "benchmarks" / "gpu.sh", shape], env={"PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert script.returncode == 2
    assert script.stderr.startswith(said)
    assert script.stderr.count("\n") == 1
