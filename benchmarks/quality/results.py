"""The tables of docs/results.md: presets, shots, WAS, losses and timesteps on PartScenes, with the embedded backbone.

    python -m benchmarks.quality.results --jobs 2                      everything; takes hours
    python -m benchmarks.quality.results --jobs 2 --only presets was   some tables; the others show earlier runs
    python -m benchmarks.quality.results --only                        runs nothing, writes what is there

Every optimisation takes minutes of one core, and is made once: the command goes on where it was stopped. Exit codes:
0 done, 1 some run failed, 2 an option cannot be used, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shlex
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from benchmarks.common import command_line, keeping, machine
from benchmarks.common.sides import ROOT
from benchmarks.quality.laboratory import Job, Laboratory, Trial, add_options
from benchmarks.quality.study import Measurement, Optimisation, Section, sections
from benchmarks.quality.tables import PAPER, page

from slime_image import ImageError
from slime_optimize.backbone import EMBEDDED
from slime_optimize.errors import InputError, failed, first_line
from slime_optimize.segmenter import library_versions

BOUNDS = "bounds"
TABLES = ("shots", "was", "losses", "t_test", "presets", "ablation", "tried", "search")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    made = command_line.parser(__doc__)
    made.add_argument("--jobs", type=int, default=1, help="processes of one thread each (default: 1)")
    made.add_argument("--only", nargs="*", choices=(*TABLES, BOUNDS), help="tables to run for (default: all)")
    made.add_argument("--out", type=Path, default=ROOT / "docs", help="folder for results.md and results.json")
    made.add_argument("--backbone", default=EMBEDDED, help="embedded, or a folder in diffusers layout")
    made.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    made.add_argument("--images", type=int, help="to measure on, of each class, to see that everything works")
    add_options(made, (0, 1, 2))
    arguments = made.parse_args(argv)
    try:
        return run(arguments, sys.argv[1:] if argv is None else argv)
    except (InputError, ImageError) as error:
        return failed(error, 2)
    except (RuntimeError, OSError) as error:
        return failed(error, 1)
    except KeyboardInterrupt:
        return failed(RuntimeError("interrupted; the same command goes on from here"), 130)


def run(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    if arguments.jobs < 1:
        raise InputError(f"--jobs: got {arguments.jobs}, expected 1 or more")
    laboratory = _laboratory(arguments)
    tables = sections(laboratory.backbone.recommended)
    laboratory.draw(arguments.kinds)
    wanted = [*TABLES, BOUNDS] if arguments.only is None else arguments.only
    try:
        mistakes = _work(list(jobs(tables, wanted, arguments.kinds, arguments.seeds)), arguments)
    finally:  # what is there is worth showing, also when the command is stopped
        result = collected(laboratory, tables, arguments, command)
        keeping.write(arguments.out / "results.json", keeping.compact(result))
        keeping.write(arguments.out / "results.md", page(result))
        print(arguments.out / "results.md", flush=True)
    return 1 if mistakes else 0


def jobs(
    tables: dict[str, Section], wanted: Sequence[str], kinds: Sequence[str], seeds: Sequence[int]
) -> Iterator[Job]:
    """Yield each optimisation once, with every measurement that a wanted table makes of it: seed by seed."""
    if BOUNDS in wanted:
        yield from (Job(kind=kind) for kind in kinds)
    for number, seed in enumerate(seeds):
        measured: dict[str, tuple[Optimisation, list[Measurement]]] = {}
        for table in (tables[name] for name in wanted if name in tables):
            for variant in table.variants if number < (table.seeds or len(seeds)) else ():
                key = json.dumps(asdict(variant.optimisation))
                measurements = measured.setdefault(key, (variant.optimisation, []))[1]
                if variant.measurement not in measurements:
                    measurements.append(variant.measurement)
        for optimisation, measurements in measured.values():
            for kind in kinds:
                yield Job(kind=kind, seed=seed, optimisation=optimisation, measurements=tuple(measurements))


def _work(pending: list[Job], arguments: argparse.Namespace) -> int:
    """Carry the jobs out in processes, say of each how it went, and return how many failed."""
    mistakes = 0
    machine.set_threads(1)  # before the processes import torch
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn"), _begin, (arguments,)) as pool:
        doing = {pool.submit(_do, job): job for job in pending}
        try:
            for number, done in enumerate(as_completed(doing), 1):
                error = done.exception()
                told = f"failed: {first_line(error)}" if error else f"{done.result():.0f} s"
                mistakes += error is not None
                print(f"[{number}/{len(pending)}] {doing[done].name}: {told}", flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return mistakes


_here: Laboratory | None = None


def _begin(arguments: argparse.Namespace) -> None:
    """Prepare a new process: its own copy of the backbone, and one thread to compute with."""
    global _here
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    _here = _laboratory(arguments)


def _end_with(parent: int) -> None:
    """End this process when the command was killed, which could not tell it to stop."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _do(job: Job) -> float:
    """Do the job; return the seconds it took."""
    assert _here is not None
    began = time.monotonic()
    _here.work(job)
    return time.monotonic() - began


def _laboratory(arguments: argparse.Namespace) -> Laboratory:
    return Laboratory(
        cache=arguments.cache,
        backbone_name=arguments.backbone,
        device=arguments.device,
        trial=Trial(steps=arguments.steps, images=arguments.images),
    )


def collected(
    laboratory: Laboratory, tables: dict[str, Section], arguments: argparse.Namespace, command: Sequence[str]
) -> dict[str, Any]:
    """Return everything that the page shows, and what it was made with."""
    backbone, trial, facts = laboratory.backbone, laboratory.trial, machine.facts()
    less = [f"{value} {name}" for name, value in asdict(trial).items() if value is not None]
    about = {
        "command": shlex.join(["python", "-m", "benchmarks.quality.results", *command]),
        "trial": ", ".join(less) or None,
        "machine": f"{facts['cpu']}, {facts['cores']} cores",
        "device": laboratory.device,
        "date": facts["date"],
        "versions": {"Python": facts["python"], **library_versions()},
        "backbone": {"id": backbone.id, "hash": backbone.hash},
    }
    rows = [
        {
            "section": name,
            "label": variant.label,
            "paper": variant.paper,
            "optimisation": asdict(variant.optimisation),
            "measurement": asdict(variant.measurement),
            "figures": {
                kind: {
                    str(seed): laboratory.measured(
                        Job(kind=kind, seed=seed, optimisation=variant.optimisation), variant.measurement
                    )
                    for seed in arguments.seeds[: section.seeds]
                }
                for kind in arguments.kinds
            },
        }
        for name, section in tables.items()
        for variant in section.variants
    ]
    return {
        **about,
        "seeds": arguments.seeds,
        "smallest_third": {kind: list(laboratory.smallest(kind)) for kind in arguments.kinds},
        "sections": {name: {"title": of.title, "text": of.text, "paper": of.paper} for name, of in tables.items()},
        "rows": rows,
        "bounds": {kind: laboratory.bounds(kind) for kind in arguments.kinds},
        "paper_on_other_data": PAPER,
    }


if __name__ == "__main__":
    sys.exit(main())
