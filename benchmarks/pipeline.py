"""One image from bytes to mask: the published form, ours in PyTorch, and every served form, interleaved in one run.

    python -m benchmarks.pipeline --shape embedded --growth
    python -m benchmarks.pipeline --shape sd21 --json docs/performance.json --page docs/performance.md

Shapes: `embedded`, the backbone in this repository; `sd21` and `sd15`, random weights of those exact shapes (or, with
--backbone, any folder in diffusers layout). Each variant is a process of its own that holds its models and is told, in
turn, to segment; the others wait at a pipe. Where not all fit in memory together, each is started for its turn in
every round, and ended after it. ONNX files are made once and kept in --work. This process holds no weights.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.pipeline_figures import growth_figures, result_of
from benchmarks.pipeline_onnx import SESSIONS
from benchmarks.pipeline_page import page, plot, table
from benchmarks.sides import ROOT, BenchmarkError, Side, cpu, python, started, write

SHAPES = ("embedded", "sd21", "sd15")
PRODUCT = "product"
# Name -> encoder and UNet, by what pipeline_exports calls them.
SERVED = {
    "averaged": ("encoder", "averaged"),
    "weighted": ("encoder", "weighted"),
    "weighted_cpu": ("encoder_cpu", "weighted_cpu"),
    "int8": ("encoder", "int8"),
    "tiny": ("tiny_encoder", "weighted"),
    "int8_tiny": ("tiny_encoder", "int8"),
}
VARIANTS = ("published", "torch", *SERVED)
GROWTH_PARTS = (2, 6, 24, 77)
GROWTH_SIDES = (1, 2, 4, 8)  # times the network's own
GROWING = ("torch", "averaged", "weighted")
BATCHES = (1, 2, 4)
_ROUNDS = {"embedded": 15}
_FEW = 3
_LARGE = 5e8  # bytes of a UNet; beyond it, variants do not stay in memory between their turns


@dataclass(frozen=True)
class Wanted:
    """One process to measure. `session`: options of ONNX Runtime's, by name; `triton`: behind the server."""

    name: str
    parts: int
    session: str = "served"
    triton: bool = False


@dataclass(frozen=True, kw_only=True)
class Runner:
    """How a variant's process is started. `kept`: those that stay until the end."""

    options: argparse.Namespace
    exports: Mapping[str, Any]
    resident: bool
    kept: dict[Wanted, Side] = field(default_factory=dict)
    ready: dict[str, dict[str, Any]] = field(default_factory=dict)
    peaks: dict[Wanted, float] = field(default_factory=dict)

    def missing(self, name: str) -> str:
        """Why the variant cannot be measured, or nothing."""
        return next((model["missing"] for model in self._models(name) if "missing" in model), "")

    def macs(self, name: str) -> int:
        """Of the variant's graphs; 0 where PyTorch runs."""
        return sum(model["macs"] for model in self._models(name))

    @contextmanager
    def turn(self, wanted: Wanted) -> Iterator[Side]:
        """The process: one that stayed, or one for this turn, whose peak memory is then noted."""
        if wanted in self.kept:
            yield self.kept[wanted]
            return
        with started(wanted.name, "benchmarks.pipeline_side", *self._words(wanted)) as side:
            self.ready.setdefault(wanted.name, side.ask())
            yield side
            self.peaks[wanted] = max(self.peaks.get(wanted, 0), side.end()["peak_bytes"])

    def stay(self, stack: ExitStack, wanted: Wanted) -> None:
        """Keeps the process, where all fit in memory, until `stack` closes; its peak is noted there."""
        if self.resident:
            self.kept[wanted] = stack.enter_context(self.turn(wanted))
            stack.callback(self.kept.pop, wanted)

    def _models(self, name: str) -> list[dict[str, Any]]:
        return [self.exports["models"][f"{variant}-{self.options.parts}"] for variant in SERVED.get(name, ())]

    def _words(self, wanted: Wanted) -> list[object]:
        options = self.options
        common = ["--device", options.device, "--threads", options.threads, "--session", wanted.session]
        if wanted.name == PRODUCT:
            return [PRODUCT, *common]
        if wanted.name in SERVED:
            forms = [f"{variant}-{wanted.parts}" for variant in SERVED[wanted.name]]
            encoder, unet = (self.exports["models"][variant]["path"] for variant in forms)
            return ["triton" if wanted.triton else "onnx", "--encoder", encoder, "--unet", unet, *common]
        folder = self.exports["segmenters"][str(wanted.parts)]
        return [wanted.name, "--segmenter", folder, "--backbone", options.backbone, *common]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One shape's result."""
    with ExitStack() as stack:
        name = Path(options.backbone).name if options.backbone else options.shape
        options.backbone = options.backbone or stack.enter_context(_written(options))
        runner = _runner(options, sorted({options.parts, *(GROWTH_PARTS if options.growth else ())}))
        variants = [each for each in options.variants if not runner.missing(each)]
        absent = {each: runner.missing(each) for each in options.variants if each not in variants}
        runs = rounds(runner, {each: Wanted(each, options.parts) for each in (PRODUCT, *variants)}, options.rounds, {})
        peaks = {each: runner.peaks[Wanted(each, options.parts)] for each in variants}
        batches = _batches(runner, variants, options)
        macs, masks = _counted(runner, variants, options)
        more = {name: of(runner, variants, options) for name, of in MORE.items() if getattr(options, name)}
    return {
        "shape": name,
        "parts": options.parts,
        "pixels": runner.exports["image_size"],
        "rounds": options.rounds,
        "resident": runner.resident,
        "missing": absent,
        "models": {key: _without(model, "path") for key, model in runner.exports["models"].items()},
        **result_of(runs, batches, peaks, macs, masks),
        **more,
        "machine": _machine(runner, options),
    }


def rounds(
    runner: Runner, sides: Mapping[str, Wanted], count: int, order: Mapping[str, Any]
) -> dict[str, list[dict[str, float]]]:
    """Seconds of each side's turns, by its key: `order` once of each, there and back by turns, `count` times."""
    seconds: dict[str, list[dict[str, float]]] = {key: [] for key in sides}
    with ExitStack() as stack:
        for wanted in sides.values():
            runner.stay(stack, wanted)
        for turn in range(count):
            for key in list(sides) if turn % 2 == 0 else reversed(list(sides)):
                with runner.turn(sides[key]) as side:
                    seconds[key].append(side.ask(json.dumps(order))["seconds"])
            told = ", ".join(f"{key} {1e3 * each[-1]['total']:.0f} ms" for key, each in seconds.items())
            print(f"round {turn + 1} of {count} {json.dumps(order)}: {told}", flush=True)
    return seconds


def _batches(runner: Runner, variants: Sequence[str], options: argparse.Namespace) -> dict[str, dict[int, Any]]:
    """Seconds of larger batches. The published form takes one image at a time."""
    sides = {each: Wanted(each, options.parts) for each in variants if each != "published"}
    found: dict[str, dict[int, Any]] = {each: {} for each in variants}
    for batch in options.batches:
        if batch > 1:
            for name, seconds in rounds(runner, sides, max(1, options.rounds // 3), {"batch": batch}).items():
                found[name][batch] = seconds
    return found


def _counted(
    runner: Runner, variants: Sequence[str], options: argparse.Namespace
) -> tuple[dict[str, int], dict[str, Any]]:
    """Multiply-accumulates and masks of every variant."""
    macs, masks = {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in variants:
            with runner.turn(Wanted(name, options.parts)) as side:
                macs[name] = runner.macs(name) or side.ask('{"count": true}')["macs"]
                masks[name] = np.load(side.ask(json.dumps({"save": f"{scratch}/{name}.npy"}))["saved"])
    return macs, masks


def _grown(runner: Runner, variants: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds by number of parts and by the image's side."""
    growing = [each for each in GROWING if each in variants]
    sides = {f"{name}-{parts}": Wanted(name, parts) for name in growing for parts in GROWTH_PARTS}
    by_parts = growth_figures(rounds(runner, sides, options.rounds, {}))
    by_side: dict[str, float] = {}
    for times in GROWTH_SIDES:
        pixels = times * runner.exports["image_size"]
        of_side = {f"{name}-{pixels}": Wanted(name, options.parts) for name in growing}
        by_side |= growth_figures(rounds(runner, of_side, max(2, options.rounds // 3), {"side": pixels}))
    return {"parts": by_parts, "sides": by_side}


def _served(runner: Runner, variants: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of whole requests to the server, and of the same models in one process, by turns."""
    names = [each for each in ("averaged", "weighted") if each in variants]
    sides = {
        f"{name}-{int(over)}": Wanted(name, options.parts, triton=over) for name in names for over in (False, True)
    }
    found = growth_figures(rounds(runner, sides, options.rounds, {}))
    return {name: {"served_ms": found[f"{name}-1"], "process_ms": found[f"{name}-0"]} for name in names}


def _sessions(runner: Runner, variants: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds and peak memory by options of ONNX Runtime's session."""
    names = [each for each in ("averaged", "weighted") if each in variants]
    every = [Wanted(name, options.parts, session) for name in names for session in SESSIONS]
    found = growth_figures(rounds(runner, {f"{each.name}, {each.session}": each for each in every}, options.rounds, {}))
    peaks = {f"{each.name}, {each.session}": round(runner.peaks[each] / 1e9, 3) for each in every}
    return {key: {"ms": found[key], "peak_gb": peaks[key]} for key in found}


MORE = {"growth": _grown, "triton": _served, "sessions": _sessions}


def _runner(options: argparse.Namespace, parts: Sequence[int]) -> Runner:
    forms = sorted({variant for name in options.variants for variant in SERVED.get(name, ())})
    words = ["--parts", *parts, "--threads", options.threads]
    told = python(
        "benchmarks.pipeline_exports", options.backbone, options.work, *words, "--forms", *(forms or ["encoder"])
    )
    exports = json.loads(told)
    sizes = [model["bytes"] for model in exports["models"].values() if "bytes" in model]
    return Runner(options=options, exports=exports, resident=max(sizes, default=0) < _LARGE)


@contextmanager
def _written(options: argparse.Namespace) -> Iterator[str]:
    """The backbone of that shape: the name of the one that is here, or a folder that stays in --work."""
    if options.shape == "embedded":
        yield options.shape
        return
    folder = options.work / f"random-{options.shape}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=options.work, prefix=".random-") as waiting:
            print(f"writing random weights of {options.shape}", flush=True)
            python("benchmarks.make_random_backbone", "--like", options.shape, "--out", f"{waiting}/made")
            os.replace(f"{waiting}/made", folder)
    yield str(folder)


def _machine(runner: Runner, options: argparse.Namespace) -> dict[str, Any]:
    about: dict[str, Any] = {"versions": {}}
    for told in runner.ready.values():
        versions = about["versions"] | told["versions"]
        about |= {"device": told["device"], "threads": told["threads"]} | {"versions": versions}
    return {"cpu": cpu(), "cores": os.cpu_count(), "python": platform.python_version(), **about}


def _without(model: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in model.items() if key != name}


def keep(shape: str, result: dict[str, Any], json_file: Path | None, page_file: Path | None) -> None:
    """This shape's result beside, or over, what the file holds of it and of other shapes, and the page made of all."""
    kept = json.loads(json_file.read_text()) if json_file and json_file.exists() else {}
    kept[shape] = kept.get(shape, {}) | result
    if json_file:
        write(json_file, json.dumps(kept, indent=1) + "\n")
    if page_file:
        write(page_file, page(kept))
        plot(kept, page_file.with_suffix(".png"))


def main(argv: Sequence[str] | None = None) -> int:
    options = _arguments(argv)
    options.work = options.work.resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    # Libraries read these when a side starts; PyTorch and ONNX Runtime are told besides.
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(options.threads))
    try:
        result = measure(options)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n" + table(result))
    keep(result["shape"], result, options.json, options.page)
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="embedded")
    parser.add_argument("--backbone", help="a folder in diffusers layout, in place of the shape's weights")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--rounds", type=int, help=f"turns of each variant (embedded: 15, else {_FEW})")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--parts", type=int, default=6, help="with the background (6)")
    parser.add_argument("--growth", action="store_true", help="also by number of parts and by the image's side")
    parser.add_argument("--triton", action="store_true", help="also what the server adds")
    parser.add_argument("--sessions", action="store_true", help="also by options of ONNX Runtime's session")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the variant whose turn it is (all)")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "pipeline", help="where ONNX files are kept")
    parser.add_argument("--json", type=Path, help="also keep the result in this file, by shape")
    parser.add_argument("--page", type=Path, help="also write the page, and a plot, of all results that --json holds")
    options = parser.parse_args(argv)
    options.rounds = options.rounds or _ROUNDS.get(options.shape, _FEW)
    return options


if __name__ == "__main__":
    sys.exit(main())
