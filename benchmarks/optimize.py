"""A training step in the published code's form against ours: time per step and peak memory, interleaved in one run.

    python -m benchmarks.optimize --shape embedded
    python -m benchmarks.optimize --shape sd21 --json docs/optimise-speed.json --page docs/optimise-speed.md

Shapes: `embedded`, the backbone in this repository; `sd21` and `sd15`, random weights of those exact shapes (or, with
--backbone, any folder in diffusers layout). Each side is a process of its own that is told, in turn, to take one step,
so that what else the machine does falls on both, and its peak memory is its own. This process holds no weights.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.optimize_page import page, table
from benchmarks.sides import ROOT, BenchmarkError, Side, cpu, free_bytes, python, started, write

SHAPES = ("embedded", "sd21", "sd15")
LESSONS = {"published": ("published",), "ours": ("guided", "plain", "guided_reused", "plain_reused")}
_STEPS = {"embedded": 16}
_FEW = 3  # steps of a large backbone
_MOST_BYTES = 20e9  # of the published form; beyond it both are measured on smaller images
_BESIDES = 1.25  # of the published form's need: what the resting side keeps


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One shape's result."""
    with ExitStack() as stack:
        backbone = options.backbone or stack.enter_context(_written(options.shape))
        pixels, notes = _pixels(options, backbone)
        sides: dict[str, Side] = {}
        ready: dict[str, Any] = {}
        for name in LESSONS:  # one after the other, each with its step to warm up
            sides[name] = stack.enter_context(_started(name, backbone, pixels, options))
            ready = sides[name].ask()
        seconds = _interleaved(sides, options.steps)
        peaks = {name: side.end()["peak_bytes"] for name, side in sides.items()}
    rows = {name: _row(each, peaks["published" if name == "published" else "ours"]) for name, each in seconds.items()}
    return {
        "shape": Path(options.backbone).name if options.backbone else options.shape,
        "pixels": pixels,
        "parts": options.parts,
        "steps": options.steps,
        "notes": notes,
        "rows": rows,
        "ratios": _ratios(rows),
        "machine": {"cpu": cpu(), "cores": os.cpu_count(), "python": platform.python_version(), **ready},
    }


def _interleaved(sides: dict[str, Side], steps: int) -> dict[str, list[dict[str, float]]]:
    """By lesson, the seconds of each step: one of each lesson, then the next of each."""
    seconds: dict[str, list[dict[str, float]]] = {lesson: [] for of in LESSONS.values() for lesson in of}
    for turn in range(steps):
        for name, of_side in LESSONS.items():
            for lesson in of_side:
                seconds[lesson].append(sides[name].ask(lesson))
        told = ", ".join(f"{lesson} {1e3 * sum(each[-1].values()):.0f} ms" for lesson, each in seconds.items())
        print(f"step {turn + 1} of {steps}: {told}", flush=True)
    return seconds


def _row(seconds: Sequence[dict[str, float]], peak_bytes: float) -> dict[str, Any]:
    """Encoding is a mean, because ours is done for several steps in one of them; the rest is a median."""
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


def _ratios(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """How many times slower, and larger, the published form is; `_encoded`: than ours without encoding."""
    published = rows["published"]
    return {
        **{name: round(published["ms"] / rows[name]["ms"], 2) for name in LESSONS["ours"]},
        "guided_encoded": round(published["ms"] / rows["guided"]["learn_ms"], 2),
        "plain_encoded": round(published["ms"] / rows["plain"]["learn_ms"], 2),
        "memory": round(published["peak_gb"] / rows["guided"]["peak_gb"], 2),
    }


def _pixels(options: argparse.Namespace, backbone: str) -> tuple[int, list[str]]:
    """Of an image's side, and why not those that the backbone is made for."""
    told = _forecast(backbone, options.pixels, options.parts)
    pixels, notes = options.pixels or int(told["native"]), []
    if options.pixels is None and told["bytes"] > _most(options.device):
        pixels = pixels * 3 // 4
        notes = [f"at {told['native']} px the published form needs {told['bytes'] / 1e9:.1f} GB: both at {pixels} px"]
        told = _forecast(backbone, pixels, options.parts)
    needed, free = told["bytes"] * _BESIDES, free_bytes()
    if options.device == "cpu" and needed > free:
        raise BenchmarkError(
            f"memory: {free / 1e9:.1f} GB are free, both sides need about {needed / 1e9:.1f} GB at {pixels} px; "
            "end other programs, or give fewer --pixels"
        )
    notes.append(f"the published form was forecast to need {told['bytes'] / 1e9:.1f} GB")
    print("; ".join(notes), flush=True)
    return pixels, notes


def _most(device: str) -> float:
    return min(_MOST_BYTES, free_bytes() / _BESIDES) if device == "cpu" else _MOST_BYTES


def _forecast(backbone: str, pixels: int | None, parts: int) -> dict[str, float]:
    size = ["--pixels", str(pixels)] if pixels else []
    told = python("benchmarks.optimize_side", "forecast", backbone, "--parts", str(parts), *size)
    answer: dict[str, float] = json.loads(told)
    return answer


@contextmanager
def _written(shape: str) -> Iterator[str]:
    """The backbone of that shape: the name of the one that is here, or a folder that lasts for a with-block."""
    if shape == "embedded":
        yield shape
        return
    # On disk, and not where a system may keep temporary files in memory: both sides map the one copy.
    (ROOT / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "build", prefix=f"random-{shape}-") as folder:
        print(f"writing random weights of {shape}", flush=True)
        python("benchmarks.make_random_backbone", "--like", shape, "--out", folder)
        os.sync()
        yield folder


def _started(name: str, backbone: str, pixels: int, options: argparse.Namespace) -> AbstractContextManager[Side]:
    words = ("--pixels", pixels, "--parts", options.parts, "--steps", options.steps, "--device", options.device)
    return started(name, "benchmarks.optimize_side", name, backbone, *words, "--threads", options.threads)


def _keep(result: dict[str, Any], json_file: Path | None, page_file: Path | None) -> None:
    """This shape's result beside those of other shapes, and the page made of all."""
    kept = json.loads(json_file.read_text()) if json_file and json_file.exists() else {}
    kept[result["shape"]] = result
    if json_file:
        write(json_file, json.dumps(kept, indent=1) + "\n")
    if page_file:
        write(page_file, page(kept))


def main(argv: Sequence[str] | None = None) -> int:
    options = _arguments(argv)
    try:
        result = measure(options)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n" + table(result))
    _keep(result, options.json, options.page)
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="embedded")
    parser.add_argument("--backbone", help="a folder in diffusers layout, in place of the shape's weights")
    parser.add_argument("--steps", type=int, help=f"of each, after one to warm up (embedded: 16, else {_FEW})")
    parser.add_argument("--pixels", type=int, help="of an image's side (the backbone's, or less where memory is short)")
    parser.add_argument("--parts", type=int, default=6, help="with the background (6)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the side whose turn it is (all cores)")
    parser.add_argument("--json", type=Path, help="also keep the result in this file, by shape")
    parser.add_argument("--page", type=Path, help="also write the page of all results that --json holds")
    options = parser.parse_args(argv)
    options.steps = options.steps or _STEPS.get(options.shape, _FEW)
    return options


if __name__ == "__main__":
    sys.exit(main())
