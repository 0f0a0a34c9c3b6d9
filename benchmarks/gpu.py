"""The published form of inference against ours on one GPU: latency, images/s, memory, and whether the masks agree.

    python -m benchmarks.gpu --shape sd21 --json docs/gpu.json --page docs/gpu-results.md
    python -m benchmarks.gpu --shape embedded --device cpu --turns 3 --batches 1 2

`benchmarks/gpu.sh` does all of it on a bare machine. With --repository (of export/build.py, --maps weighted) the
exported files run as well: ONNX Runtime's CUDA provider, and TensorRT engines, which are built first. What cannot run
here is left out, and the page says why.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from benchmarks.gpu_networks import Graphed, Maps, Networks, NotRunError, OnnxOnDevice, Served, masks
from benchmarks.gpu_page import ROWS, page, table
from benchmarks.make_random_backbone import SEGMENTER, SHAPES, random_segmenter, write
from benchmarks.pictures import picture
from benchmarks.published_inference import PublishedInference
from torch import Tensor, nn

from slime_export.errors import EngineError, ExportError
from slime_export.graph import engine_builder as tensorrt
from slime_export.graph.encoder import Encoder
from slime_export.graph.engine_runner import Engine
from slime_export.graph.onnx_export import FILE
from slime_export.graph.unet import MapsUNet
from slime_export.publish import layout
from slime_image import fit
from slime_optimize.backbone import EMBEDDED, Backbone, choose_device, load_backbone
from slime_optimize.errors import InputError
from slime_optimize.files import write_text
from slime_optimize.segmenter import Segmenter, library_versions
from slime_repository.variant import is_encoder, is_unet

Run = Callable[[Tensor], Tensor]  # pixels (B,3,S,S) -> masks (B,S,S)

ROOT = Path(__file__).resolve().parents[1]
LEAST_AGREEMENT = 0.99  # of pixels, of fp16 with fp32
_WARM = 3


@dataclass(frozen=True, kw_only=True)
class Way:
    """One row: `prepared` gives what runs a batch of this size; `weights` in bytes, where PyTorch holds them."""

    name: str
    prepared: Callable[[Tensor], Run]
    weights: int | None = None


class Bench:
    """The ways to a mask of one segmenter on one device, and why others are left out (`not_run`)."""

    def __init__(self, folder: str, segmenter: Segmenter | None, options: argparse.Namespace) -> None:
        self.device, self.options = choose_device(options.device), options
        self.backbone = load_backbone(folder, self.device)
        self.segmenter = segmenter or random_segmenter(self.backbone, options.parts)
        self.postprocess = self.segmenter.settings.postprocess(self.backbone.image_size)
        self.not_run: dict[str, str] = {}
        self.published = PublishedInference.of(self.segmenter, self.backbone)
        encoders = ("vae", "tiny") if self.backbone.tiny else ("vae",)
        self.full = self._networks(self.backbone, encoders)
        # Loaded anew, because the published form and ours in fp32 keep the first.
        self.half = {
            each: one.in_half() for each, one in self._networks(load_backbone(folder, self.device), encoders).items()
        }

    def _networks(self, backbone: Backbone, encoders: Sequence[str]) -> dict[str, Networks]:
        """By encoder; the UNet is one."""
        unet = MapsUNet(self.segmenter, backbone)
        made = {each: Networks(Encoder(backbone, each), unet, self.postprocess) for each in encoders}
        return {each: networks.to(self.device).eval() for each, networks in made.items()}

    def ways(self) -> list[Way]:
        """In the page's order."""
        ways = [self._published(), _eager("fp32", self.full["vae"], self._masks), *self._in_half()]
        for name, attempt in (("onnx", self._onnx), ("tensorrt", self._tensorrt)):
            try:
                ways.append(attempt())
            except (NotRunError, ExportError, EngineError) as error:
                self.not_run[name] = str(error)
        return ways

    def references(self, pixels_B3SS: Tensor) -> dict[str, Tensor]:
        """By encoder, the masks that rows are compared with; one by one, for the memory."""
        images = pixels_B3SS.split(1)
        return {each: torch.cat([self._masks(networks(one)) for one in images]) for each, networks in self.full.items()}

    def agreement(self, run: Run, pixels_B3SS: Tensor, name: str, references: dict[str, Tensor]) -> float:
        """Share of pixels that are as in our fp32 masks with the same encoder; the published form's are given our
        latents and noise for once."""
        got = self._published_masks(pixels_B3SS) if name == "published" else run(pixels_B3SS)
        return float((got == references["tiny" if name.startswith("tiny") else "vae"]).float().mean())

    def _published_masks(self, pixels_B3SS: Tensor) -> Tensor:
        latents_B4hw = self.full["vae"].encoder(pixels_B3SS)
        noise_14hw = self.segmenter.noise[:1].to(self.device)
        each = [self.published.maps(one[None], noise_14hw) for one in latents_B4hw]
        return torch.stack([self.published.scores(*maps, self.backbone.image_size).argmax(0) for maps in each])

    def _masks(self, maps: Maps) -> Tensor:
        return masks(maps, self.postprocess, self.backbone.image_size)

    def _published(self) -> Way:
        weights = _bytes(self.backbone.unet, self.backbone.vae)
        return Way(name="published", prepared=lambda _: self.published, weights=weights)

    def _in_half(self) -> list[Way]:
        ways = []
        names = {"vae": ("fp16", "graph"), "tiny": ("tiny", "tiny_graph")}
        for encoder, (eager, graph) in names.items():
            networks = self.half.get(encoder)
            if networks is None:
                self.not_run |= dict.fromkeys((eager, graph), "this backbone has no tiny encoder")
                continue
            ways.append(_eager(eager, networks, self._masks))
            if self.device.type == "cuda":
                ways.append(self._graph(graph, networks))
            else:
                self.not_run[graph] = "CUDA graphs need a GPU"
        return ways

    def _graph(self, name: str, networks: Networks) -> Way:
        def prepared(pixels_B3SS: Tensor) -> Run:
            graphed = Graphed(networks, pixels_B3SS)
            return lambda pixels: self._masks(graphed(pixels))

        return Way(name=name, prepared=prepared, weights=_bytes(networks))

    def _onnx(self) -> Way:
        encoder, unet = (OnnxOnDevice(path, self.device) for path in self._exported())
        served = Served(encoder, unet)
        return Way(name="onnx", prepared=lambda _: lambda pixels: self._masks(served(pixels)))

    def _tensorrt(self) -> Way:
        encoder, unet = (Engine(self._plan(path), str(self.device)) for path in self._exported())
        served = Served(encoder.run, unet.run)
        return Way(name="tensorrt", prepared=lambda _: lambda pixels: self._masks(served(pixels)))

    def _plan(self, path: Path) -> Path:
        """The engine of an ONNX file, beside the repository: in it, it would be a model."""
        repository, largest = self.options.repository.resolve(), max(self.options.batches)
        options = tensorrt.Options(max_batch=largest, opt_batch=largest, timing_cache=tensorrt.timing_cache(repository))
        folder = repository.with_name(f"{repository.name}-engines") / path.parents[1].name
        folder.mkdir(parents=True, exist_ok=True)
        return tensorrt.build(path, folder, options)

    def _exported(self) -> tuple[Path, Path]:
        """The encoder's and the UNet's file of the repository's first segmenter."""
        repository: Path | None = self.options.repository
        names = layout.segmenters(repository) if repository else []
        if repository is None or not names:
            raise NotRunError("no --repository with a segmenter was given")
        pins = layout.pinned(repository / names[0])
        paths = {model: repository / model / str(version) / FILE for model, version in pins.items()}
        encoder = next(path for model, path in paths.items() if is_encoder(model))
        unet = next(path for model, path in paths.items() if is_unet(model))
        if "_weighted" not in unet.parents[1].name:
            raise NotRunError(f"{names[0]} was exported without --maps weighted")
        return encoder, unet


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One shape's result."""
    torch.backends.cudnn.benchmark = True  # for every row alike
    torch.manual_seed(0)
    folder = options.backbone or _written(options.shape)
    kept = Path(folder) / SEGMENTER
    bench = Bench(folder, Segmenter.load(kept) if kept.is_dir() else None, options)
    ways = bench.ways()
    rows: dict[str, dict[str, Any]] = {way.name: {} for way in ways}
    with torch.no_grad():
        for batch in options.batches:
            for name, row in _of_batch(bench, ways, _pixels(bench.backbone, batch)).items():
                rows[name][str(batch)] = row
    return {
        "shape": Path(options.backbone).name if options.backbone else options.shape,
        "pixels": bench.backbone.image_size,
        "parts": len(bench.segmenter.parts),
        "batches": options.batches,
        "turns": options.turns,
        "rows": rows,
        "not_run": bench.not_run,
        "machine": _machine(bench.device),
    }


def _of_batch(bench: Bench, ways: Sequence[Way], pixels_B3SS: Tensor) -> dict[str, dict[str, Any]]:
    """A row for each way that has the memory."""
    batch, references = len(pixels_B3SS), bench.references(pixels_B3SS)
    runs: dict[str, Run] = {}
    peaks: dict[str, float | None] = {}
    for way in ways:
        try:
            runs[way.name], peaks[way.name] = _prepared(way, pixels_B3SS)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            bench.not_run[way.name] = f"batch {batch}: not enough memory"
    times = _interleaved(runs, pixels_B3SS, bench.options.turns)
    found = {}
    for name, ms in times.items():
        found[name] = {
            "ms": round(median(ms), 3),
            "least_ms": round(min(ms), 3),
            "most_ms": round(max(ms), 3),
            "rate": round(1e3 * batch / median(ms), 2),
            "ratio": round(median(times["published"]) / median(ms), 3) if "published" in times else None,
            "peak_gb": peaks[name],
            "agreement": bench.agreement(runs[name], pixels_B3SS, name, references),
        }
    return found


def _prepared(way: Way, pixels_B3SS: Tensor) -> tuple[Run, float | None]:
    """What runs this batch, warm, and the most memory in GB that PyTorch then held for it."""
    on_gpu = pixels_B3SS.device.type == "cuda"
    before = 0
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    run = way.prepared(pixels_B3SS)
    for _ in range(_WARM if on_gpu else 1):
        run(pixels_B3SS)
    if not on_gpu or way.weights is None:
        return run, None
    return run, round((torch.cuda.max_memory_allocated() - before + way.weights) / 1e9, 3)


def _interleaved(runs: dict[str, Run], pixels_B3SS: Tensor, turns: int) -> dict[str, list[float]]:
    """By row, the milliseconds of each turn: one batch of every row, then the next."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns):
        for name, run in runs.items():
            times[name].append(_timed(run, pixels_B3SS))
        told = ", ".join(f"{name} {ms[-1]:.1f}" for name, ms in times.items())
        print(f"batch {len(pixels_B3SS)}, turn {turn + 1} of {turns}, ms: {told}", flush=True)
    return times


def _timed(run: Run, pixels_B3SS: Tensor) -> float:
    """Milliseconds, by the device's own clock."""
    if pixels_B3SS.device.type != "cuda":
        start = time.perf_counter()
        run(pixels_B3SS)
        return 1e3 * (time.perf_counter() - start)
    torch.cuda.synchronize()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    run(pixels_B3SS)
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def _eager(name: str, networks: Networks, masks_of: Callable[[Maps], Tensor]) -> Way:
    return Way(name=name, prepared=lambda _: lambda pixels: masks_of(networks(pixels)), weights=_bytes(networks))


def _bytes(*modules: nn.Module) -> int:
    """Of weights, shared ones once."""
    held = {id(each): each for module in modules for each in (*module.parameters(), *module.buffers())}
    return sum(each.numel() * each.element_size() for each in held.values())


def _pixels(backbone: Backbone, batch: int) -> Tensor:
    side = backbone.image_size
    fitted = np.stack([fit(picture(side, seed), side) for seed in range(batch)])
    return torch.from_numpy(fitted).to(backbone.device)


def _written(shape: str) -> str:
    """The backbone of that shape: the name of the one that is here, or a folder, written where it is missing."""
    if shape == EMBEDDED:
        return shape
    folder = ROOT / "build" / f"random-{shape}"
    if not folder.exists():
        print(f"writing random weights of {shape} into {folder}", flush=True)
        write(SHAPES[shape], folder)
        backbone = load_backbone(folder)
        random_segmenter(backbone, 6).save(folder / SEGMENTER)
    return str(folder)


def _machine(device: torch.device) -> dict[str, Any]:
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "threads": torch.get_num_threads(),
        "versions": library_versions(),
        "tf32": {"convolutions": torch.backends.cudnn.allow_tf32, "products": torch.backends.cuda.matmul.allow_tf32}
        if on_gpu
        else {},
    }


def disagreements(result: dict[str, Any]) -> list[str]:
    """Rows of ours whose masks are not those of fp32."""
    return [
        f"{ROWS[name]}, batch {batch}: {100 * row['agreement']:.2f} % of pixels are those of fp32, expected "
        f"{100 * LEAST_AGREEMENT:g} %"
        for name, batches in result["rows"].items()
        for batch, row in batches.items()
        if name != "published" and not row["agreement"] >= LEAST_AGREEMENT
    ]


def _keep(result: dict[str, Any], json_file: Path | None, page_file: Path | None) -> None:
    """This shape's result beside those of other shapes, and the page made of all."""
    kept = json.loads(json_file.read_text()) if json_file and json_file.exists() else {}
    kept[result["shape"]] = result
    if json_file:
        write_text(json_file, json.dumps(kept, indent=1) + "\n")
    if page_file:
        write_text(page_file, page(kept))


def main(argv: Sequence[str] | None = None) -> int:
    options = _arguments(argv)
    try:
        result = measure(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n" + table(result))
    _keep(result, options.json, options.page)
    for line in disagreements(result):
        print(f"error: {line}", file=sys.stderr)
    return 1 if disagreements(result) else 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=[EMBEDDED, *sorted(SHAPES)], default="sd21")
    parser.add_argument("--backbone", help="a folder in diffusers layout, in place of the shape's weights")
    parser.add_argument("--device", default="auto", help="cuda, cpu, or auto (a GPU where there is one)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--turns", type=int, default=20, help="of each row and batch, after some to warm up (20)")
    parser.add_argument(
        "--parts", type=int, default=6, help="with the background, where the weights bring no segmenter"
    )
    parser.add_argument("--repository", type=Path, help="of export/build.py --maps weighted, of the same backbone")
    parser.add_argument("--json", type=Path, help="also keep the result in this file, by shape")
    parser.add_argument("--page", type=Path, help="also write the page of all results that --json holds")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
