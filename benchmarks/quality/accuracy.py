"""What int8 and the tiny encoder cost in mean IoU: segmenters of the embedded backbone on PartScenes' test images.

    python -m benchmarks.quality.accuracy --json docs/performance.json --page docs/performance.md

Segmenters are those of benchmarks.quality.one_shot, preset `best`, made here where they are not there yet; for the
tiny encoder they are learned again with it, as they must be. fp32 and int8 run in ONNX Runtime, as served; int8 is
calibrated on the ten images of another split. The tiny encoder runs in PyTorch, whose masks an export is held to.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from benchmarks.common import keeping
from benchmarks.common.sides import ROOT, MissingError
from benchmarks.pipeline.exports import Exports
from benchmarks.pipeline.figures import page
from benchmarks.pipeline.side import Stages
from demo import optimise
from PIL import Image

from slime_backbone.dataset import write_split
from slime_backbone.scene import KINDS
from slime_image import load
from slime_optimize.backbone import Backbone, load_backbone
from slime_optimize.method.predict import Predictor
from slime_optimize.metrics import confusion, report
from slime_optimize.segmenter import Segmenter

Pixels = npt.NDArray[np.uint8]
FORMS = ("weighted", "int8", "tiny")
_CALIBRATION = "train-10"


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """A split's folder, with its images and true masks in order."""

    folder: Path

    @property
    def files(self) -> list[bytes]:
        return [path.read_bytes() for path in sorted((self.folder / "images").glob("*.png"))]

    @property
    def images(self) -> list[Pixels]:
        return [load(path) for path in sorted((self.folder / "images").glob("*.png"))]

    def miou(self, masks: Sequence[Pixels]) -> float:
        """Return the mean IoU in per cent, as everywhere else."""
        parts = json.loads((self.folder / "parts.json").read_text())
        truths = [np.asarray(Image.open(path)) for path in sorted((self.folder / "masks").glob("*.png"))]
        pairs = zip(truths, masks, strict=True)
        return float(report([confusion(truth, mask, len(parts)) for truth, mask in pairs], parts).mean)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the mean IoU by form and class, over the seeds."""
    backbone = load_backbone("embedded")
    found: dict[str, dict[str, list[float]]] = {form: {kind: [] for kind in options.kinds} for form in options.forms}
    missing: dict[str, str] = {}
    for kind in options.kinds:
        test = Annotated(folder=write_split(options.work / "partscenes", kind, "test"))
        for seed in options.seeds:
            for form in [form for form in options.forms if form not in missing]:
                try:
                    masks = _masks(form, kind, seed, test, backbone, options)
                except MissingError as error:
                    missing[form] = str(error)
                    continue
                found[form][kind].append(test.miou(masks))
                print(f"{kind}-{seed} {form}: {found[form][kind][-1]:.2f}", flush=True)
    told = {form: of for form, of in found.items() if form not in missing}
    return figures({form: {kind: mean(each) for kind, each in of.items()} for form, of in told.items()}, options.seeds)


def figures(miou: dict[str, dict[str, float]], seeds: Sequence[int]) -> dict[str, Any]:
    """Return the mean IoU, and what each form loses against fp32."""
    plain = miou.get("weighted", {})
    lost = {form: {kind: plain[kind] - each for kind, each in of.items()} for form, of in miou.items() if plain}
    return {
        "images": 50,
        "seeds": list(seeds),
        "miou": {form: {kind: round(each, 3) for kind, each in of.items()} for form, of in miou.items()},
        "lost": {form: {kind: round(each, 3) for kind, each in of.items()} for form, of in lost.items()},
    }


def _masks(
    form: str, kind: str, seed: int, test: Annotated, backbone: Backbone, options: argparse.Namespace
) -> list[Pixels]:
    """Return the test images' masks. Raises MissingError where the form cannot be had."""
    folder = _segmenter(kind, seed, backbone, options, tiny=form == "tiny")
    segmenter = Segmenter.load(folder)
    if form == "tiny":
        return Predictor(segmenter, backbone).masks(test.images)
    name = f"{kind}-{seed}-{segmenter.hash[:12]}"
    unlabelled = Annotated(folder=write_split(options.work / "partscenes", kind, _CALIBRATION))
    exports = Exports.of(backbone, options.work, given={name: folder}, pictures=unlabelled.images)
    served = exports.served("encoder", name, exports.made(form, name)["path"])
    return [served.masks([file], Stages())[0] for file in test.files]


def _segmenter(kind: str, seed: int, backbone: Backbone, options: argparse.Namespace, *, tiny: bool) -> Path:
    """Return a segmenter learned with the encoder that it runs with; it is made if it is not there."""
    if tiny and backbone.tiny is None:
        raise MissingError("the embedded backbone has no tiny encoder")
    folder: Path = options.segmenters / (f"{kind}-{seed}-tiny" if tiny else f"{kind}-{seed}")
    training = write_split(options.work / "partscenes", kind, "train-1")
    more = [*(("--encoder", "tiny") if tiny else ()), *(("--steps", options.steps) if options.steps else ())]
    optimise(training, folder, "--seed", seed, "--quiet", *more)
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    options = _arguments(argv)
    torch.set_num_threads(options.threads)
    options.work = options.work.resolve()
    accuracy = measure(options)
    print(json.dumps(accuracy, indent=1))
    keeping.keep(options, {"accuracy": accuracy}, page, "embedded")
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "pipeline", help="where ONNX files are kept")
    parser.add_argument("--segmenters", type=Path, default=ROOT / "build" / "one-shot" / "segmenters")
    parser.add_argument("--steps", type=int, help="of each optimisation, to see that everything works")
    keeping.add_options(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
