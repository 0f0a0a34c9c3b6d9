"""A training step in the published code's form against ours: time per step and peak memory, by turns in one run.

    python -m benchmarks.pipeline.optimize --shape embedded
    python -m benchmarks.pipeline.optimize --shape sd21 --json docs/optimise-speed.json --page docs/optimise-speed.md

Shapes are those of benchmarks.pipeline. Each side is a process of its own that is told, in turn, to take one step, so
that what else the machine does falls on both, and its peak memory is its own. This process holds no weights.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.common import command_line, keeping, machine
from benchmarks.common.figures import Goal
from benchmarks.common.random_backbone import written
from benchmarks.common.sides import BenchmarkError, Side, python, reported, started
from benchmarks.pipeline.figures import SHAPES

from slime_optimize.method.precision import has_amx

_LOWER = ("plain_bf16", "plain_bf16_but_attention") if has_amx() else ()
LESSONS = {"published": ("published",), "ours": ("guided", "plain", "guided_reused", "plain_reused", *_LOWER)}
_STEPS = {"embedded": 16}
_FEW = 3  # steps of a large backbone
_MOST_BYTES = 20e9  # of the published form; beyond it both are measured on smaller images
_BESIDES = 1.25  # of the published form's need: what the resting side keeps
_NAMES = {
    "published": "published form",
    "guided": "ours, the same guided loss",
    "plain": "ours, the paper's plain loss",
    "guided_reused": "ours, guided, each view in three steps",
    "plain_reused": "ours, plain, each view in three steps",
    "plain_bf16": "ours, plain, bf16",
    "plain_bf16_but_attention": "ours, plain, bf16, attention in fp32",
}
_WANTED = {"guided": 1.8, "plain": 2.7, "guided_reused": 1.8, "plain_reused": 2.7, "memory": 2.0}  # of sd21


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return one shape's result."""
    backbone, facts = options.backbone or written(options.shape), machine.facts()
    pixels, notes = _pixels(options, backbone)
    words = ("--pixels", pixels, "--parts", options.parts, "--steps", options.steps, "--device", options.device)
    sides: dict[str, Side] = {}
    ready: dict[str, Any] = {}
    seconds: dict[str, list[dict[str, float]]] = {lesson: [] for of in LESSONS.values() for lesson in of}
    with ExitStack() as stack:
        for name in LESSONS:  # one after the other, each with its step to warm up
            command = (name, backbone, *words, "--threads", options.threads)
            sides[name] = stack.enter_context(started(name, "benchmarks.pipeline.optimize_side", *command))
            ready = sides[name].ask()
        for turn in range(options.steps):
            for name, of_side in LESSONS.items():
                for lesson in of_side:
                    seconds[lesson].append(sides[name].ask({"lesson": lesson}))
            told = ", ".join(f"{lesson} {1e3 * sum(each[-1].values()):.0f} ms" for lesson, each in seconds.items())
            print(f"step {turn + 1} of {options.steps}: {told}", flush=True)
        peaks = {name: side.end()["peak_bytes"] for name, side in sides.items()}
    rows = {name: row(each, peaks["published" if name == "published" else "ours"]) for name, each in seconds.items()}
    return {
        "shape": Path(options.backbone).name if options.backbone else options.shape,
        "pixels": pixels,
        "parts": options.parts,
        "steps": options.steps,
        "notes": notes,
        "rows": rows,
        "ratios": ratios(rows),
        "machine": {**facts, **ready},
    }


def row(seconds: Sequence[dict[str, float]], peak_bytes: float) -> dict[str, Any]:
    """Return a lesson's figures: encoding is a mean, as ours is done for several steps at once; the rest a median."""
    learn_ms = [1e3 * each["learn"] for each in seconds]
    encode_ms = mean(1e3 * each["encode"] for each in seconds)
    return {
        "ms": round(encode_ms + median(learn_ms), 1),
        "least_ms": round(encode_ms + min(learn_ms), 1),
        "most_ms": round(encode_ms + max(learn_ms), 1),
        "encode_ms": round(encode_ms, 1),
        "learn_ms": round(median(learn_ms), 1),
        "peak_gb": round(peak_bytes / 1e9, 2),
    }


def ratios(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return how many times slower, and larger, the published form is; `_encoded`: than ours without encoding."""
    published = rows["published"]
    return {
        **{name: round(published["ms"] / rows[name]["ms"], 2) for name in LESSONS["ours"]},
        "guided_encoded": round(published["ms"] / rows["guided"]["learn_ms"], 2),
        "plain_encoded": round(published["ms"] / rows["plain"]["learn_ms"], 2),
        **{f"{name}_over_fp32": round(rows["plain"]["learn_ms"] / rows[name]["learn_ms"], 2) for name in _LOWER},
        "memory": round(published["peak_gb"] / rows["guided"]["peak_gb"], 2),
    }


def _pixels(options: argparse.Namespace, backbone: str) -> tuple[int, list[str]]:
    """Return the side of the images, and why it is not the one that the backbone is made for.

    Raises BenchmarkError where memory does not suffice.
    """

    def forecast(pixels: int | None) -> dict[str, float]:
        size = ("--pixels", pixels) if pixels else ()
        told = python("benchmarks.pipeline.optimize_side", "forecast", backbone, "--parts", options.parts, *size)
        answer: dict[str, float] = json.loads(told)
        return answer

    told, free = forecast(options.pixels), machine.free_bytes()
    most = min(_MOST_BYTES, free / _BESIDES) if options.device == "cpu" else _MOST_BYTES
    pixels, notes = options.pixels or int(told["native"]), []
    if options.pixels is None and told["bytes"] > most:
        pixels = pixels * 3 // 4
        notes = [f"at {told['native']} px the published form needs {told['bytes'] / 1e9:.1f} GB: both at {pixels} px"]
        told = forecast(pixels)
    needed = told["bytes"] * _BESIDES
    if options.device == "cpu" and needed > free:
        raise BenchmarkError(
            f"memory: {free / 1e9:.1f} GB are free, both sides need about {needed / 1e9:.1f} GB at {pixels} px; "
            "end other programs, or give fewer --pixels"
        )
    notes.append(f"the published form was forecast to need {told['bytes'] / 1e9:.1f} GB")
    print("; ".join(notes), flush=True)
    return pixels, notes


def verdicts(result: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return figure, wanted, measured and verdict of what is wanted at this shape."""
    wanted = _WANTED if result["shape"] == "sd21" else {}
    goals = {name: Goal(label=name, relation="≥", wanted=least) for name, least in wanted.items()}
    return [goal.row(result["ratios"][name]) for name, goal in goals.items() if name in result["ratios"]]


def page(results: Mapping[str, Any]) -> str:
    """Return the whole document."""
    labels = {"names": _NAMES, "shapes": SHAPES, "verdicts": verdicts}
    return keeping.render("pipeline/optimize.md.j2", results=results, **labels)


@reported
def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 1 where it cannot be measured."""
    options = _arguments(argv)
    result = measure(options)
    print("\n" + page({result["shape"]: result}).partition("\n## ")[2])
    keeping.keep(options, result, page, result["shape"])
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line.parser(__doc__)
    parser.add_argument("--shape", choices=list(SHAPES), default="embedded")
    parser.add_argument("--backbone", help="a folder in diffusers layout, in place of the shape's weights")
    parser.add_argument("--steps", type=int, help=f"of each, after one to warm up (embedded: 16, else {_FEW})")
    parser.add_argument("--pixels", type=int, help="of an image's side (the backbone's, or less where memory is short)")
    parser.add_argument("--parts", type=int, default=6, help="with the background (6)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the side whose turn it is (all cores)")
    keeping.add_options(parser)
    options = parser.parse_args(argv)
    options.steps = options.steps or _STEPS.get(options.shape, _FEW)
    return options


if __name__ == "__main__":
    sys.exit(main())
