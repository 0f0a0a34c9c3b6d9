"""Measure what correcting two masks and learning on brings: `slime optimize --begin`, as the studio does it.

    python -m benchmarks.quality.correcting
    python -m benchmarks.quality.correcting --kinds face --seeds 0 --anew

A segmenter of benchmarks.quality.results (preset `best`, 1-shot; learned here where it is not there yet) segments
the validation images. The two with the lowest mean IoU get their true masks, and a run on the first image and these two
begins at its embeddings, with a third of the steps. Mean IoU, in percent, is of the validation images that were not
learned from, and of the test images. Seconds are of the process's CPU time. `--anew` also learns from the same three
images from the start, with all steps.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean

import torch
from benchmarks.common import machine
from benchmarks.quality.laboratory import Job, Laboratory, add_options
from benchmarks.quality.study import Optimisation

from slime_export.machine import processor
from slime_optimize.commands.run import ON_SHARE
from slime_optimize.evaluation import Data, confusions
from slime_optimize.method.prediction import Predictor
from slime_optimize.method.run import Begin, Run
from slime_optimize.method.training import learn
from slime_optimize.metrics import image_score, report
from slime_optimize.segmenter import Segmenter
from slime_optimize.tables import Table

_CORRECTED = 2


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, (0, 1, 2))
    parser.add_argument("--anew", action="store_true", help="learn from the three images from the start as well")
    options = parser.parse_args(argv)
    machine.set_threads(1)
    torch.set_num_threads(1)
    laboratory = Laboratory.of(options)
    columns = ("PartScenes", "learned", "validation, mean IoU, %", "test, mean IoU, %", "CPU s")
    rows = []
    for kind in options.kinds:
        for seed in options.seeds:
            found = measured(laboratory, kind, seed, anew=options.anew)
            print(*found, sep="\n", flush=True)
            rows += found
    for way in dict.fromkeys(row[1] for row in rows):
        of_way = [row for row in rows if row[1] == way]
        means = (f"{mean(float(row[column]) for row in of_way):.1f}" for column in (2, 3))
        rows.append(("mean", way, *means, ""))
    print(Table(columns=columns, rows=tuple(rows)).text())
    print(f"{processor()}, one thread")
    return 0


def measured(laboratory: Laboratory, kind: str, seed: int, *, anew: bool) -> list[tuple[str, ...]]:
    """Return the rows of one class and seed: from one image, learned on and, with anew, learned from the start."""
    job = Job(kind=kind, seed=seed, optimisation=Optimisation(preset="best"))
    first, folder = laboratory.run(job), laboratory.segmenter(job)
    segmenter = Segmenter.load(folder)
    validation, test = (laboratory.data(kind, split) for split in ("validation", "test"))
    scores = [image_score(each) for each in confusions(Predictor(segmenter, laboratory.backbone), validation)]
    order = sorted(range(len(scores)), key=scores.__getitem__)
    worst, others = order[:_CORRECTED], order[_CORRECTED:]
    unseen = Data(parts=validation.parts, images=tuple(validation.images[index] for index in others))
    examples = (*first.examples, *(validation.images[index]() for index in worst))
    everything = replace(first, examples=examples)
    steps = -(-everything.steps // ON_SHARE)
    runs: dict[str, Run] = {
        "two corrected, learned on": replace(
            everything,
            settings=everything.settings.changed({"steps": steps}),
            begin=Begin(segmenter=segmenter, folder=str(folder)),
        )
    }
    if anew:
        runs["the same three, anew"] = everything
    learned = {"from one image": (segmenter, "")}
    for way, run in runs.items():
        begun = time.process_time()
        learned[way] = learn(run, progress=False).segmenter, f"{time.process_time() - begun:.0f}"
    return [
        (
            f"{kind}, seed {seed}",
            way,
            *(
                f"{report(confusions(Predictor(each, laboratory.backbone), data), data.parts).mean:.1f}"
                for data in (unseen, test)
            ),
            seconds,
        )
        for way, (each, seconds) in learned.items()
    ]


if __name__ == "__main__":
    raise SystemExit(main())
