"""One image from bytes to mask: the published form, ours in PyTorch, and every served form, by turns in one run.

    python -m benchmarks.pipeline --shape embedded --growth
    python -m benchmarks.pipeline --shape sd21 --json docs/performance.json --page docs/performance.md
    python -m benchmarks.pipeline --shape sd21 --device cuda      (benchmarks/gpu.sh does this on a bare machine)

Shapes: `embedded`, the backbone in this repository; `sd21` and `sd15`, random weights of those exact shapes (or, with
--backbone, any folder in diffusers layout). Each variant is a process of its own that holds its models and is told, in
turn, to segment; the others wait at a pipe. Where not all fit in memory together, each is started for its turn in
every round, and ended after it. Model files are made once and kept in --work. This process holds no weights. What
cannot run here is left out, and the page says why.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.common import command_line, keeping, machine
from benchmarks.common.random_backbone import written
from benchmarks.common.sides import ROOT, MissingError, Side, python, reported, started
from benchmarks.pipeline.figures import PRODUCT, medians, page, plot, result_of, verdicts
from benchmarks.pipeline.served_side import SESSIONS
from benchmarks.pipeline.side import TORCH

from slime_repository.openvino_network import CACHE_VARIABLE

SHAPES = ("embedded", "sd21", "sd15")
# Name -> forms of the encoder and of the UNet, as benchmarks.pipeline.exports names them.
SERVED = {
    "averaged": ("encoder", "averaged"),
    "weighted": ("encoder", "weighted"),
    "weighted_cpu": ("encoder_cpu", "weighted_cpu"),
    "int8": ("encoder", "int8"),
    "openvino": ("encoder", "weighted"),
    "openvino_bf16": ("encoder", "weighted"),
    "openvino_int8": ("encoder", "int8"),
    "openvino_bf16_tiny": ("tiny_encoder", "weighted"),
    "tiny": ("tiny_encoder", "weighted"),
    "int8_tiny": ("tiny_encoder", "int8"),
    "onnx_fp16": ("encoder_fp16", "weighted_fp16"),
    "tensorrt": ("encoder_plan", "weighted_plan"),
}
# Those that OpenVINO runs -> what it computes in.
OPENVINO = {"openvino": "fp32", "openvino_int8": "fp32", "openvino_bf16": "bf16", "openvino_bf16_tiny": "bf16"}
ON_GPU = ("onnx_fp16", "tensorrt")
VARIANTS = {
    "cpu": ("published", "torch", *(name for name in SERVED if name not in ON_GPU)),
    "cuda": (*TORCH, *ON_GPU),
}
BATCHES = {"cpu": (1, 2, 4), "cuda": (1, 8)}
GROWTH_PARTS = (2, 6, 24, 77)
GROWTH_SIDES = (1, 2, 4, 8)  # times the network's own
GROWING = ("torch", "averaged", "weighted")
_ROUNDS = {"embedded": 15}
_FEW = 3
_LARGE = 5e8  # bytes of a UNet; beyond it, variants do not stay in a CPU's memory between their turns
Seconds = dict[str, list[dict[str, float]]]


@dataclass(frozen=True)
class Wanted:
    """One process to measure. `session`: options of ONNX Runtime's, by name; `triton`: behind the server."""

    name: str
    parts: int
    session: str = "served"
    triton: bool = False


@dataclass(frozen=True, kw_only=True)
class Runner:
    """Starts the variants' processes. `kept`: those that stay until the end."""

    options: argparse.Namespace
    exports: Mapping[str, Any]
    resident: bool
    kept: dict[Wanted, Side] = field(default_factory=dict)
    ready: dict[str, dict[str, Any]] = field(default_factory=dict)
    peaks: dict[Wanted, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def models(self, name: str, parts: int) -> list[dict[str, Any]]:
        return [self.exports["models"][f"{form}-{parts}"] for form in SERVED.get(name, ())]

    def missing(self, name: str) -> str:
        """Return why the variant cannot be measured, or nothing; one that not every machine runs is started once."""
        reasons = [model["missing"] for model in self.models(name, self.options.parts) if "missing" in model]
        everywhere = self.options.device == "cpu" and name in VARIANTS["cpu"] and name not in OPENVINO
        if not reasons and not everywhere:
            try:
                with self.turn(Wanted(name, self.options.parts)):
                    pass
            except MissingError as error:
                reasons = [str(error)]
        return "; ".join(dict.fromkeys(reasons))

    @contextmanager
    def turn(self, wanted: Wanted) -> Iterator[Side]:
        """Yield the process: one that stayed, or one for this turn, whose peak memory is then noted."""
        if wanted in self.kept:
            yield self.kept[wanted]
            return
        with started(wanted.name, "benchmarks.pipeline.side", *self._words(wanted)) as side:
            ready = side.ask()
            if "missing" in ready:
                raise MissingError(ready["missing"])
            self.ready.setdefault(wanted.name, ready)
            yield side
            self.peaks[wanted] = max(self.peaks.get(wanted, 0), side.end()["peak_bytes"])

    def rounds(self, sides: Mapping[str, Wanted], count: int, order: Mapping[str, Any]) -> Seconds:
        """Return the seconds of each side's turns: once each, there and back in alternation, `count` times.

        What fails, as where memory does not suffice for a batch, has no seconds, and is noted in `failed`.
        """
        seconds: Seconds = {key: [] for key in sides}
        with ExitStack() as stack:
            for wanted in sides.values() if self.resident else ():
                self.kept[wanted] = stack.enter_context(self.turn(wanted))
                stack.callback(self.kept.pop, wanted)
            for turn in range(count):
                for key in list(seconds) if turn % 2 == 0 else list(reversed(seconds)):
                    with self.turn(sides[key]) as side:
                        answer = side.ask(order)
                    if "failed" in answer:
                        self.failed[key] = answer["failed"]
                        del seconds[key]
                    else:
                        seconds[key].append(answer["seconds"])
                told = ", ".join(f"{key} {1e3 * each[-1]['total']:.0f} ms" for key, each in seconds.items())
                print(f"round {turn + 1} of {count} {json.dumps(order)}: {told}", flush=True)
        return seconds

    def _words(self, wanted: Wanted) -> list[object]:
        options = self.options
        words: list[object] = ["--device", options.device, "--threads", options.threads, "--session", wanted.session]
        if wanted.name == PRODUCT:
            return [PRODUCT, *words]
        segmenter = ("--segmenter", self.exports["segmenters"][str(wanted.parts)])
        if wanted.name in SERVED:
            encoder, unet = (model["path"] for model in self.models(wanted.name, wanted.parts))
            words += ["--openvino", OPENVINO[wanted.name]] if wanted.name in OPENVINO else []
            words += ["--encoder", encoder, "--unet", unet, "--pixels", self.exports["image_size"]]
            return ["triton" if wanted.triton else "served", *segmenter, *words]
        return [wanted.name, *segmenter, "--backbone", options.backbone, *words]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return one shape's result."""
    shape = Path(options.backbone).name if options.backbone else options.shape
    options.backbone = options.backbone or written(options.shape, options.work)
    facts = machine.facts()
    runner = _runner(options, sorted({options.parts, *(GROWTH_PARTS if options.growth else ())}))
    absent = {name: reason for name in options.variants if (reason := runner.missing(name))}
    variants = [name for name in options.variants if name not in absent]
    sides = {name: Wanted(name, options.parts) for name in variants}
    runs = runner.rounds({PRODUCT: Wanted(PRODUCT, options.parts), **sides}, options.rounds, {})
    variants = [name for name in variants if name in runs]
    batches: dict[str, dict[int, Any]] = {name: {} for name in variants}
    peaks = {name: runner.peaks[sides[name]] for name in variants}
    for batch in (size for size in options.batches if size > 1):  # the published form takes one image at a time
        larger = {name: side for name, side in sides.items() if name in variants and name != "published"}
        for name, of in runner.rounds(larger, max(1, options.rounds // 3), {"batch": batch}).items():
            batches[name][batch] = of
    macs, masks = _counted(runner, variants, options)
    more = {name: of(runner, variants, options) for name, of in MORE.items() if getattr(options, name)}
    ready = list(runner.ready.values())
    # PyTorch's sides know a GPU's name.
    device = max((str(each["device"]) for each in ready), key=lambda name: (name != "cpu", len(name)))
    versions = {name: version for each in ready for name, version in each["versions"].items()}
    models = {
        key: {name: value for name, value in model.items() if name != "path"}
        for key, model in runner.exports["models"].items()
    }
    return {
        "shape": shape,
        "parts": options.parts,
        "pixels": runner.exports["image_size"],
        "rounds": options.rounds,
        "resident": runner.resident,
        "missing": absent | runner.failed,
        "models": models,
        **result_of(runs, batches, peaks, macs, masks),
        **more,
        "machine": facts | {"device": device, "threads": options.threads, "versions": versions},
    }


def _counted(
    runner: Runner, variants: Sequence[str], options: argparse.Namespace
) -> tuple[dict[str, int], dict[str, Any]]:
    """Return multiply-accumulates and masks of every variant."""
    macs, masks = {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in variants:
            with runner.turn(Wanted(name, options.parts)) as side:
                in_files = sum(model["macs"] for model in runner.models(name, options.parts))
                macs[name] = in_files or side.ask({"count": True})["macs"]
                masks[name] = np.load(side.ask({"save": f"{scratch}/{name}.npy"})["saved"])
    return macs, masks


def _grown(runner: Runner, variants: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Return milliseconds by number of parts and by the image's side."""
    growing = [each for each in GROWING if each in variants]
    sides = {f"{name}-{parts}": Wanted(name, parts) for name in growing for parts in GROWTH_PARTS}
    by_parts = medians(runner.rounds(sides, options.rounds, {}))
    by_side: dict[str, float] = {}
    for times in GROWTH_SIDES:
        pixels = times * runner.exports["image_size"]
        of_side = {f"{name}-{pixels}": Wanted(name, options.parts) for name in growing}
        by_side |= medians(runner.rounds(of_side, max(2, options.rounds // 3), {"side": pixels}))
    return {"parts": by_parts, "sides": by_side}


def _served(runner: Runner, variants: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Return milliseconds of whole requests to the server, and of the same models in one process, by turns."""
    names = [each for each in ("averaged", "weighted", "openvino", "openvino_bf16") if each in variants]
    sides = {
        f"{name}-{int(over)}": Wanted(name, options.parts, triton=over) for name in names for over in (False, True)
    }
    found = medians(runner.rounds(sides, options.rounds, {}))
    return {name: {"served_ms": found[f"{name}-1"], "process_ms": found[f"{name}-0"]} for name in names}


def _sessions(runner: Runner, variants: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Return milliseconds and peak memory by options of ONNX Runtime's session."""
    names = [each for each in ("averaged", "weighted") if each in variants]
    every = {f"{name}, {each}": Wanted(name, options.parts, each) for name in names for each in SESSIONS}
    found = medians(runner.rounds(every, options.rounds, {}))
    return {key: {"ms": found[key], "peak_gb": round(runner.peaks[side] / 1e9, 3)} for key, side in every.items()}


MORE = {"growth": _grown, "triton": _served, "sessions": _sessions}


def _runner(options: argparse.Namespace, parts: Sequence[int]) -> Runner:
    forms = sorted({form for name in options.variants for form in SERVED.get(name, ())}) or ["encoder"]
    words = ("--parts", *parts, "--threads", options.threads, "--forms", *forms)
    exports = json.loads(python("benchmarks.pipeline.exports", options.backbone, options.work, *words))
    sizes = [model["bytes"] for model in exports["models"].values() if "bytes" in model]
    resident = options.device != "cpu" or max(sizes, default=0) < _LARGE
    return Runner(options=options, exports=exports, resident=resident)


def disagreements(result: Mapping[str, Any]) -> list[str]:
    """Return a line for each variant whose masks are not those of our PyTorch, though they should be."""
    missed = [row for row in verdicts(result) if row[0].startswith("agreement_") and row[3] != "met"]
    return [
        f"{name}: {found} of the pixels are as in fp32 PyTorch, wanted {wanted}" for name, wanted, found, _ in missed
    ]


@reported
def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 1 where it cannot be measured, or where masks disagree on a GPU."""
    parser = command_line.parser(__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="embedded")
    parser.add_argument("--backbone", help="a folder in diffusers layout, in place of the shape's weights")
    every = list(dict.fromkeys((*VARIANTS["cpu"], *VARIANTS["cuda"])))
    parser.add_argument("--variants", nargs="+", choices=every, help="default: those that suit the device")
    parser.add_argument("--rounds", type=int, help=f"turns of each variant (embedded: 15, else {_FEW})")
    parser.add_argument("--batches", type=int, nargs="+", help="default: 1 2 4; on a GPU 1 8")
    parser.add_argument("--parts", type=int, default=6, help="with the background (6)")
    parser.add_argument("--growth", action="store_true", help="also by number of parts and by the image's side")
    parser.add_argument("--triton", action="store_true", help="also what the server adds")
    parser.add_argument("--sessions", action="store_true", help="also by options of ONNX Runtime's session")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the variant whose turn it is (all)")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "pipeline", help="where model files are kept")
    keeping.add_options(parser)
    options = parser.parse_args(argv)
    options.rounds = options.rounds or (20 if options.device == "cuda" else _ROUNDS.get(options.shape, _FEW))
    options.variants = options.variants or VARIANTS[options.device]
    options.batches = options.batches or BATCHES[options.device]
    options.work = options.work.resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault(CACHE_VARIABLE, str(options.work / "openvino"))
    machine.set_threads(options.threads)  # PyTorch and ONNX Runtime are told besides
    result = measure(options)
    keeping.keep(options, result, page, result["shape"], plot)
    print("\n" + page({result["shape"]: result}).partition("\n## ")[2])
    for line in (wrong := disagreements(result)):
        print(f"error: {line}", file=sys.stderr)
    return 1 if wrong and options.device != "cpu" else 0


if __name__ == "__main__":
    sys.exit(main())
