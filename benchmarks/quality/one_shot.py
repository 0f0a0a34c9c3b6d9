"""One annotated image, 50 test images, three seeds, three classes: mean IoU over gRPC, beside its floors and ceiling.

    python -m benchmarks.quality.one_shot --json docs/one-shot.json        (`make results`)

Each (class, seed) goes the whole way: optimised, exported, published, served by Triton, asked through slime_client.
The masks are compared with PyTorch's, and the same segmenter is measured without WAS. Segmenters, floors and ceilings
are kept where benchmarks.quality.results keeps them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from math import nan
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

from benchmarks.common import command_line, keeping, machine, served_repository
from benchmarks.common.figures import percentile
from benchmarks.common.server import launched
from benchmarks.common.sides import ROOT
from benchmarks.quality.laboratory import BOUNDS, Job, Laboratory, add_options
from benchmarks.quality.study import Measurement, Optimisation

from slime_client import Segmenter as Client
from slime_optimize.method.prediction import load_predictor
from slime_optimize.metrics import confusion, report
from slime_repository.record import png

WITHOUT_WAS = Measurement(use_was=False)


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_line.parser(__doc__)
    add_options(parser, (0, 1, 2))
    parser.add_argument("--repository", type=Path, default=ROOT / "build" / "one-shot" / "repository")
    parser.add_argument("--skip-random", action="store_true", help="without the slow floor, the random backbone")
    keeping.add_options(parser, page=False)
    options = parser.parse_args(argv)
    laboratory = Laboratory.of(options)
    names: dict[str, Job] = {}
    for kind in options.kinds:
        for seed in options.seeds:
            job = Job(kind=kind, seed=seed, optimisation=Optimisation(preset="best"))
            folder = laboratory.segmenter(job)
            name = f"{kind}-{seed}-{folder.name[:8]}"
            served_repository.export(folder, options.repository, name)
            names[name] = job
    rows: dict[str, list[dict[str, Any]]] = {kind: [] for kind in options.kinds}
    with launched(options.repository) as server:
        for name, job in names.items():
            rows[job.kind].append(asked(server.url, name, job, laboratory))
            print(name, json.dumps(rows[job.kind][-1]), flush=True)
    wanted = [name for name in BOUNDS if name != "random_backbone" or not options.skip_random]
    bounds = {kind: laboratory.bound(kind, wanted) for kind in options.kinds}
    means = {kind: {name: each["mean_iou"] for name, each in of.items()} for kind, of in bounds.items()}
    print("\n" + table(rows, means))
    keeping.keep(options, {"rows": rows, "bounds": means, "machine": machine.facts(torch=version("torch"))})
    return 0


def asked(url: str, name: str, job: Job, laboratory: Laboratory) -> dict[str, Any]:
    """Return the figures of one segmenter over gRPC, and what PyTorch says of the same images."""
    data, masks, seconds = laboratory.data(job.kind, "test"), [], []
    examples = [read() for read in data.images]
    with Client(url, name) as client:
        client.segment(png(examples[0].image_HW3))  # the first request pays for what is set up once
        for example in examples:
            image = png(example.image_HW3)
            begun = time.perf_counter()
            masks.append(client.segment(image).array)
            seconds.append(1000 * (time.perf_counter() - begun))
    expected = load_predictor(laboratory.segmenter(job)).masks([each.image_HW3 for each in examples])
    pairs = zip(examples, masks, strict=True)
    measured = report([confusion(each.mask_HW, mask, len(data.parts)) for each, mask in pairs], data.parts)
    return {
        **measured.as_json(),
        "no_was_mean_iou": laboratory.done(job, WITHOUT_WAS)["mean_iou"],
        "pixels_as_pytorch": mean(float((a == b).mean()) for a, b in zip(masks, expected, strict=True)),
        "p50_ms": percentile(seconds, 50),
        "p95_ms": percentile(seconds, 95),
    }


def table(rows: Mapping[str, list[dict[str, Any]]], bounds: Mapping[str, Mapping[str, float]]) -> str:
    """Return a line for each class, then the mean over classes, in markdown."""
    lines = []
    for kind, of_kind in rows.items():
        over, alone = [row["mean_iou"] for row in of_kind], [row["no_was_mean_iou"] for row in of_kind]
        floors = [f"{bounds[kind].get(name, nan):.1f}" for name in BOUNDS]
        lines.append([kind, f"**{mean(over):.1f}** ± {pstdev(over):.1f}", f"{mean(alone):.1f}", *floors])
    over, alone = ([row[key] for of in rows.values() for row in of] for key in ("mean_iou", "no_was_mean_iou"))
    floors = [f"{mean(of.get(name, nan) for of in bounds.values()):.1f}" for name in BOUNDS]
    lines.append(["mean", f"**{mean(over):.1f}**", f"{mean(alone):.1f}", *floors])
    columns = ("mean IoU, %", "over gRPC", "without WAS", "floor: nearest colour", "floor: random backbone", "ceiling")
    return keeping.table(columns, lines)


if __name__ == "__main__":
    main()
