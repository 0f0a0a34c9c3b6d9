"""One annotated image, 50 test images, three seeds, three classes: mean IoU over gRPC, beside its floors and ceiling.

    python -m benchmarks.quality.one_shot --json docs/one-shot.json        (`make results`)

Each (class, seed) goes the whole way: optimised, exported, published, served by Triton, asked through slime_client.
The masks are compared with PyTorch's, and the same segmenter is measured without WAS (`--no-was`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from importlib.metadata import version
from math import nan
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

from benchmarks.common import keeping, machine
from benchmarks.common.server import launched
from benchmarks.common.sides import ROOT
from demo import Answers, ask, export, optimise

from slime_backbone.bounds import ceiling, nearest_colour, random_backbone
from slime_backbone.dataset import write_split
from slime_backbone.scene import KINDS
from slime_image import load
from slime_optimize.backbone import Backbone, load_backbone
from slime_optimize.method.predict import load_predictor
from slime_optimize.metrics import confusion, report
from slime_optimize.presets import preset


def main(argv: Sequence[str] | None = None) -> None:
    options = _arguments(argv)
    more = ("--steps", options.steps) if options.steps else ()
    build: Path = options.build
    names = {(kind, seed): f"{kind}-{seed}" for kind in options.kinds for seed in options.seeds}
    for (kind, seed), name in names.items():
        training = write_split(build / "partscenes", kind, "train-1")
        optimise(training, build / "segmenters" / name, "--seed", seed, "--quiet", *more)
        export(build / "segmenters" / name, build / "repository")
    rows: dict[str, list[dict[str, Any]]] = {kind: [] for kind in options.kinds}
    with launched(build / "repository") as served:
        for (kind, _), name in names.items():
            test = write_split(build / "partscenes", kind, "test")
            answers = ask(served.url, name, test)
            answers.contact_sheet().save(build / f"{name}.png")
            rows[kind].append(_row(answers, build / "segmenters" / name))
            print(name, json.dumps(rows[kind][-1]), flush=True)
    backbone = None if options.skip_random else load_backbone("embedded")
    bounds = {kind: _bounds(kind, backbone) for kind in options.kinds}
    print("\n" + table(rows, bounds))
    keeping.keep(options, {"rows": rows, "bounds": bounds, "machine": machine.facts(torch=version("torch"))})


def _row(answers: Answers, segmenter: Path) -> dict[str, Any]:
    """Return the figures of one segmenter over gRPC, and what PyTorch says of the same images."""
    predictor = load_predictor(segmenter)
    images = [load(path) for path in answers.images]
    same = [float((a == b).mean()) for a, b in zip(answers.masks, predictor.masks(images), strict=True)]
    crosses = predictor.masks(images, use_was=False)
    alone = [confusion(t, m, len(answers.parts)) for t, m in zip(answers.truths, crosses, strict=True)]
    measured = answers.report()
    return {
        **measured.as_json(),
        "no_was_mean_iou": report(alone, answers.parts).mean,
        "pixels_as_pytorch": mean(same),
        "p50_ms": answers.milliseconds(50),
        "p95_ms": answers.milliseconds(95),
    }


def _bounds(kind: str, backbone: Backbone | None) -> dict[str, float]:
    """Return the floors and the ceiling; without a backbone, the floor that needs an optimisation is missing."""
    bounds = {"nearest_colour": nearest_colour(kind).mean, "random_backbone": nan, "ceiling": ceiling(kind).mean}
    if backbone:
        settings = preset("best", backbone.recommended)
        bounds["random_backbone"] = random_backbone(kind, backbone, settings, progress=False).mean
    return bounds


def table(rows: dict[str, list[dict[str, Any]]], bounds: dict[str, dict[str, float]]) -> str:
    """Return a line for each class, then the mean over classes, in markdown."""
    names = ("nearest_colour", "random_backbone", "ceiling")
    lines = []
    for kind, of_kind in rows.items():
        over, alone = [row["mean_iou"] for row in of_kind], [row["no_was_mean_iou"] for row in of_kind]
        floors = [f"{bounds[kind][name]:.1f}" for name in names]
        lines.append([kind, f"**{mean(over):.1f}** ± {pstdev(over):.1f}", f"{mean(alone):.1f}", *floors])
    over, alone = ([row[key] for of in rows.values() for row in of] for key in ("mean_iou", "no_was_mean_iou"))
    floors = [f"{mean(of[name] for of in bounds.values()):.1f}" for name in names]
    lines.append(["mean", f"**{mean(over):.1f}**", f"{mean(alone):.1f}", *floors])
    columns = ("mean IoU, %", "over gRPC", "without WAS", "floor: nearest colour", "floor: random backbone", "ceiling")
    return keeping.table(columns, lines)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "one-shot", help="where everything is written")
    parser.add_argument("--skip-random", action="store_true", help="without the slow floor, the random backbone")
    parser.add_argument("--steps", type=int, help="of each optimisation, to see that everything works")
    keeping.add_options(parser, page=False)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
