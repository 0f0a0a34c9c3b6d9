"""Tries the ways of serving a segmenter on this machine's CPU, and chooses the fastest whose masks are right.

What is measured is the two networks of one image, as they would be exported: held to the gate of their precision, then
timed and weighed in a process of their own that holds nothing else. `slime export --tune` publishes the chosen one.

    python -m slime_export.tuning ENCODER UNET SIDE [PRECISION]     that process; PRECISION: OpenVINO runs them in it
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from slime_export import machine
from slime_export.errors import EngineError, ExportError
from slime_export.publish.trial import opened
from slime_repository.config import CPU, OPENVINO
from slime_repository.contract import openvino_computes_in
from slime_was.tensors import LATENTS, PIXELS

if TYPE_CHECKING:  # the process that is timed imports no PyTorch
    from slime_export.options import ExportOptions
    from slime_export.pipeline import Say

# What is tried, in the words of ExportOptions. The first is what is compared with.
WAYS: Mapping[str, Mapping[str, str]] = {
    "ONNX Runtime": {},
    "ONNX Runtime, rewritten": {"accelerator": CPU},
    "ONNX Runtime, int8": {"precision": "int8"},
    "OpenVINO": {"accelerator": OPENVINO},
    "OpenVINO, bf16": {"accelerator": OPENVINO, "precision": "bf16"},
    "OpenVINO, int8": {"accelerator": OPENVINO, "precision": "int8"},
}
_TURNS = 2  # processes for each way, by turns
_RUNS, _SECONDS = (3, 20), 5.0  # of each process: at least and at most, and when it is enough


@dataclass(kw_only=True)
class Tried:
    """One way. `reason`: why it cannot be had, or serve; empty where it can. `agreement`: of masks' pixels, 0 to 1."""

    changes: Mapping[str, str]
    files: tuple[Path, Path] | None = None
    agreement: float | None = None
    iou: float | None = None
    reason: str = ""
    ms: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    @property
    def median_ms(self) -> float:
        return median(self.ms)


def tuned(options: ExportOptions, say: Say) -> ExportOptions:
    """Return `options` with the accelerator and precision of the fastest way within its gate, after telling them all.

    Nothing is published. Raises ExportError where they are given already, and what an export raises.
    """
    if (options.embedding, options.precision, options.format, options.accelerator) != ("baked", "fp32", "onnx", None):
        raise ExportError(
            "--tune: chooses --precision and --accelerator itself, for --embedding baked; leave these options and "
            "--format out"
        )
    found = _measured(options, say)
    say(table(found))
    usual, (name, best) = found["ONNX Runtime"], fastest(found)
    words = " ".join(f"--{option} {value}" for option, value in best.changes.items()) or "no further option"
    say(f"fastest within its limits: {name} ({words}), {usual.median_ms / best.median_ms:.2f} times ONNX Runtime")
    return replace(options, **best.changes)  # type: ignore[arg-type]


def fastest(found: Mapping[str, Tried]) -> tuple[str, Tried]:
    """Return the way that takes the least time of those that may serve. Raises ExportError where there is none."""
    able = {name: each for name, each in found.items() if each.ms and not each.reason}
    if not able:
        raise ExportError(f"--tune: nothing keeps its limits ({next(iter(found.values())).reason})")
    return min(able.items(), key=lambda pair: pair[1].median_ms)


def table(found: Mapping[str, Tried]) -> str:
    """Return a line for each way, for people."""
    from tabulate import tabulate

    rows = []
    for name, each in found.items():
        masks = "" if each.agreement is None else f"{100 * each.agreement:.3f} %"
        cells = [f"{each.median_ms:.1f}", f"{each.peak_bytes / 1e9:.2f} GB"] if each.ms else ["", ""]
        rows.append([name, *cells, masks, "" if each.iou is None else f"{each.iou:.2f}", each.reason or "can serve"])
    headers = ["networks of one image", "ms, median", "memory", "masks as PyTorch's", "mean IoU", ""]
    return str(tabulate(rows, headers, disable_numparse=True))


def _measured(options: ExportOptions, say: Say) -> dict[str, Tried]:
    from slime_export.pipeline import Export
    from slime_export.publish.lock import staging

    say(f"this machine: {machine.described()}")
    run = Export(options, say, tuning=True)
    predictor = run.begin()
    with staging(options.repository, options.wait, say) as staged:
        work = staged / ".export"
        run.trace(predictor, work)
        side = run.segmenter.settings.postprocess(run.segmenter.image_size).crop_side
        del predictor
        gc.collect()
        found = {name: _tried(run, options, changes, work, say) for name, changes in WAYS.items()}
        with run.stage("measuring what keeps its limits"):
            for turn in range(_TURNS):
                for each in list(found.values())[:: -1 if turn % 2 else 1]:
                    if each.files and not each.reason:
                        _time(each, side)
    return found


def _tried(run: Any, options: ExportOptions, changes: Mapping[str, str], work: Path, say: Say) -> Tried:
    """Make the networks of one way and compare them with PyTorch; `run` has traced them."""
    tried, chosen = Tried(changes=changes), replace(options, **changes)  # type: ignore[arg-type]
    try:
        chosen.check_machine()
        run.choose(chosen)
        if chosen.precision == "int8" and not run.feeds:
            raise ExportError("no images to measure ranges on; give --calibration DIR")
        say(f"trying {', '.join(changes.values()) or 'ONNX Runtime'}")
        encoder, unet, _ = run.lowered(work / "-".join(("tried", *changes.values())))
        if chosen.on_cpu and (encoder, unet) == (run.encoder, run.unet):
            raise ExportError("nothing in these networks gains by it")
        report = run.compared(encoder, unet)
    except (ExportError, EngineError) as error:
        tried.reason = str(error)
        return tried
    tried.files, tried.reason = (encoder, unet), next(iter(report.failures), "")
    tried.agreement = min(each.mask_agreement for each in report.comparisons)
    tried.iou = report.score.after if report.score else None
    return tried


def _time(tried: Tried, side: int) -> None:
    from slime_repository.variant import Variant

    words: list[object] = [*(str(folder / "model.onnx") for folder in tried.files or ()), side]
    if tried.changes.get("accelerator") == OPENVINO:
        variant = Variant(format=OPENVINO, precision=tried.changes.get("precision", "fp32"))
        words.append(openvino_computes_in(variant))
    command = [sys.executable, "-m", "slime_export.tuning", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        tried.reason = (done.stderr.strip().splitlines() or ["it ended while it was timed"])[-1]
        return
    told = json.loads(done.stdout)
    tried.ms += told["ms"]
    tried.peak_bytes = max(tried.peak_bytes, told["peak_bytes"])


def main(encoder: str, unet: str, side: str, precision: str | None = None) -> None:
    """Print the milliseconds of each run of both networks, and the process's largest resident memory in bytes."""
    networks = [
        opened("network", Path(path), precision, threads=len(os.sched_getaffinity(0))) for path in (encoder, unet)
    ]
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, 3, int(side), int(side))).astype(np.float32)
    taken: list[float] = []
    least, most = _RUNS
    begun = time.perf_counter()
    while len(taken) <= least or (time.perf_counter() - begun < _SECONDS and len(taken) <= most):
        start = time.perf_counter()
        networks[1]({LATENTS: networks[0]({PIXELS: pixels})[LATENTS]})
        taken.append(1e3 * (time.perf_counter() - start))
    print(json.dumps({"ms": taken[1:], "peak_bytes": machine.peak_bytes()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
