"""What int8 and the tiny encoder cost in mean IoU: segmenters of the embedded backbone on PartScenes' test images.

    python -m benchmarks.quality.accuracy --json docs/performance.json --page docs/performance.md

Segmenters are those of benchmarks.quality.results, preset `best`, 1-shot, learned here where they are not there yet;
for the tiny encoder they are learned again with it, as they must be. fp32 and int8 run in ONNX Runtime, as served, and
bf16 in OpenVINO; int8 is calibrated on the ten images of another split. The tiny encoder runs in PyTorch, whose masks
an export is held to.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from benchmarks.common import command_line, keeping
from benchmarks.common.sides import ROOT, MissingError
from benchmarks.pipeline.exports import Exports
from benchmarks.pipeline.figures import page
from benchmarks.quality.laboratory import Job, Laboratory, add_options
from benchmarks.quality.study import Measurement, Optimisation

from slime_export.proof import parity

FORMS = ("weighted", "int8", "openvino_bf16", "tiny")
_CALIBRATION = "train-10"


def mean_iou(form: str, kind: str, seed: int, laboratory: Laboratory, work: Path) -> float:
    """Return the mean IoU in per cent on the test images. Raises MissingError where the form cannot be had."""
    changes = {"encoder": "tiny"} if form == "tiny" else {}
    job = Job(kind=kind, seed=seed, optimisation=Optimisation(preset="best", changes=changes))
    if form == "tiny":
        if laboratory.backbone.tiny is None:
            raise MissingError("the embedded backbone has no tiny encoder")
        found = laboratory.done(job, Measurement())
        return float(found["mean_iou"])
    folder = laboratory.segmenter(job)
    pictures = [read().image_HW3 for read in laboratory.data(kind, _CALIBRATION).images]
    in_bf16 = form == "openvino_bf16"
    exports = Exports.of(laboratory.backbone, work, given={folder.name: folder}, pictures=pictures)
    unet = exports.made("weighted" if in_bf16 else form, folder.name)["path"]
    exported = exports.exported(folder.name, unet, in_bf16=in_bf16)
    return parity.mean_iou(exported, laboratory.data(kind, "test"))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the mean IoU by form and class, over the seeds, and what each form loses against fp32."""
    laboratory = Laboratory.of(options)
    miou: dict[str, dict[str, float]] = {}
    for form in options.forms:
        try:
            for kind in options.kinds:
                of_seeds = [mean_iou(form, kind, seed, laboratory, options.work) for seed in options.seeds]
                miou.setdefault(form, {})[kind] = mean(of_seeds)
                print(f"{form} {kind}: {mean(of_seeds):.2f}", flush=True)
        except MissingError as error:
            print(f"{form}: {error}", flush=True)
    plain = miou.get("weighted")
    lost = {form: {kind: plain[kind] - each for kind, each in of.items()} for form, of in miou.items() if plain}
    return {"images": 50, "seeds": options.seeds, "miou": _rounded(miou), "lost": _rounded(lost)}


def _rounded(figures: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    return {form: {kind: round(each, 3) for kind, each in of.items()} for form, of in figures.items()}


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_line.parser(__doc__)
    add_options(parser, (0,))
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "pipeline", help="where ONNX files are kept")
    keeping.add_options(parser)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    options.work = options.work.resolve()
    accuracy = measure(options)
    print(json.dumps(accuracy, indent=1))
    keeping.keep(options, {"accuracy": accuracy}, page, "embedded")
    return 0


if __name__ == "__main__":
    main()
