"""Measure the joint bilateral upsampling of `best` beside bilinear scores: mean IoU, specks, and time.

    python -m benchmarks.quality.upsampling --split validation
    python -m benchmarks.quality.upsampling --kinds car --before HEAD~1

Segmenters are those of benchmarks.quality.results, preset `best`, 1-shot, learned here where they are not there yet.
Specks are the components of under six pixels of each image's mask, of any part; pixels touch along their sides.
Milliseconds are of one thread, the smallest of five rounds in which every way has its turn, from scores to finer
scores. `--before` measures the upsampling of an earlier revision as well.
"""

from __future__ import annotations

import argparse
import subprocess
import time
from collections.abc import Callable, Sequence
from statistics import mean, median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from benchmarks.common import machine
from benchmarks.common.sides import ROOT
from benchmarks.quality.laboratory import Job, Laboratory, add_options
from benchmarks.quality.study import Optimisation
from scipy.ndimage import label

from slime_export.machine import processor
from slime_optimize.data.annotations import Example
from slime_optimize.method.prediction import Predictor
from slime_optimize.metrics import confusion, report
from slime_optimize.segmenter import Segmenter
from slime_optimize.tables import Table
from slime_was import guided, segment

Floats = npt.NDArray[np.float32]
Upsampling = Callable[[Floats, Floats, float], Floats]  # scores, fitted image, tolerance -> finer scores
_CODE = "model_repository/was/slime_was/guided.py"
_ROUNDS = 5
_SPECK = 6  # pixels that make a component more than a speck


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, (0,))
    parser.add_argument("--split", choices=("validation", "test"), default="test", help="of PartScenes")
    parser.add_argument("--before", metavar="REVISION", help="measure the upsampling of this git revision as well")
    options = parser.parse_args(argv)
    machine.set_threads(1)
    torch.set_num_threads(1)
    laboratory = Laboratory.of(options)
    ways: dict[str, Upsampling] = {"bilinear": lambda scores_Phw, image_3SS, tolerance: scores_Phw}
    if options.before:
        ways[options.before] = _earlier(options.before)
    ways["joint bilateral"] = guided.joint_bilateral
    rows: list[tuple[str, ...]] = []
    for kind in options.kinds:
        examples = [read() for read in laboratory.data(kind, options.split).images]
        for seed in options.seeds:
            folder = laboratory.segmenter(Job(kind=kind, seed=seed, optimisation=Optimisation(preset="best")))
            predictor = Predictor(Segmenter.load(folder), laboratory.backbone)
            measured = _measured(predictor, examples, ways)
            rows += [(f"{kind}, seed {seed}", way, *cells) for way, cells in measured.items()]
        rows.append((kind, "the truth", "", f"{mean(specks(each.mask_HW) for each in examples):.1f}", ""))
    columns = (f"PartScenes, {options.split}", "upsampling", "mean IoU, %", "specks an image", "ms")
    print(Table(columns=columns, rows=tuple(rows)).text())
    print(f"{processor()}, one thread")
    return 0


def specks(mask_HW: npt.NDArray[np.uint8]) -> int:
    """Return the number of components of fewer than six pixels."""
    sizes = [np.bincount(label(mask_HW == part)[0].ravel())[1:] for part in np.unique(mask_HW)]
    return sum(int((each < _SPECK).sum()) for each in sizes)


def _measured(
    predictor: Predictor, examples: Sequence[Example], ways: dict[str, Upsampling]
) -> dict[str, tuple[str, str, str]]:
    """Return for each way its mean IoU, specks an image, and median of the images' milliseconds, as text."""
    tolerance, parts = predictor.segmenter.settings.edge_tolerance, predictor.segmenter.parts
    found: dict[str, list[tuple[Any, int, float]]] = {way: [] for way in ways}
    for example in examples:
        scores_Phw = predictor.scores([example.image_HW3])[0].numpy()
        image_3SS = predictor.pixels([example.image_HW3])[0]
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(_ROUNDS):
            for way, upsampling in ways.items():
                begun = time.perf_counter()
                upsampling(scores_Phw, image_3SS, tolerance)
                seconds[way].append(time.perf_counter() - begun)
        for way, upsampling in ways.items():
            finer_PGG = upsampling(scores_Phw, image_3SS, tolerance)
            mask_HW = segment(finer_PGG, *example.mask_HW.shape).astype(np.uint8, copy=False)
            counts_PP = confusion(example.mask_HW, mask_HW, len(parts))
            found[way].append((counts_PP, specks(mask_HW), 1e3 * min(seconds[way])))
    columns = {way: tuple(zip(*of_images, strict=True)) for way, of_images in found.items()}
    return {
        way: (f"{report(counts, parts).mean:.1f}", f"{mean(small):.1f}", f"{median(times):.2f}")
        for way, (counts, small, times) in columns.items()
    }


def _earlier(revision: str) -> Upsampling:
    """Return `joint_bilateral` of a git revision of this project."""
    shown = subprocess.run(["git", "show", f"{revision}:{_CODE}"], cwd=ROOT, capture_output=True, text=True, check=True)
    names: dict[str, Any] = {"__name__": "earlier"}
    exec(compile(shown.stdout, f"{revision}:{_CODE}", "exec"), names)
    earlier: Upsampling = names["joint_bilateral"]
    return earlier


if __name__ == "__main__":
    raise SystemExit(main())
