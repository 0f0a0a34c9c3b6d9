"""The tables of docs/results.md: presets, shots, WAS, losses and timesteps on PartScenes, with the embedded backbone.

    python -m benchmarks.results --jobs 2                      everything; hours
    python -m benchmarks.results --jobs 2 --only presets was   some tables; the others say what was run before
    python -m benchmarks.results --only                        runs nothing, writes what is there

Every optimisation takes minutes of one core, and is made once: the command goes on where it was stopped. Exit codes:
0 done, 1 some run failed, 2 something in the options cannot be used, 130 interrupted.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import platform
import shlex
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from benchmarks.laboratory import Job, Laboratory, Trial
from benchmarks.page import Results, as_json, markdown
from benchmarks.study import Measurement, Optimisation, Section, sections

from slime_backbone.scene import KINDS
from slime_image import ImageError
from slime_optimize.backbone import EMBEDDED
from slime_optimize.errors import InputError, failed, first_line
from slime_optimize.files import write_text
from slime_optimize.segmenter import library_versions

ROOT = Path(__file__).resolve().parents[1]
BOUNDS = "bounds"
TABLES = ("shots", "was", "losses", "t_test", "presets", "ablation", "tried", "search")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    arguments = parser().parse_args(argv)
    try:
        return run(arguments, sys.argv[1:] if argv is None else argv)
    except (InputError, ImageError) as error:
        return failed(error, 2)
    except (RuntimeError, OSError) as error:
        return failed(error, 1)
    except KeyboardInterrupt:
        return failed(RuntimeError("interrupted; the same command goes on from here"), 130)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    made.add_argument("--jobs", type=int, default=1, help="processes of one thread each (default: 1)")
    made.add_argument("--only", nargs="*", choices=(*TABLES, BOUNDS), help="tables to run for (default: all)")
    made.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="classes of PartScenes")
    made.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of everything random")
    made.add_argument("--cache", type=Path, default=ROOT / "build" / "results", help="where runs are kept")
    made.add_argument("--out", type=Path, default=ROOT / "docs", help="folder for results.md and results.json")
    made.add_argument("--backbone", default=EMBEDDED, help="embedded, or a folder in diffusers layout")
    made.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    trial = made.add_argument_group("a trial, to see that everything works")
    trial.add_argument("--steps", type=int, help="of every optimisation")
    trial.add_argument("--images", type=int, help="to measure on, of each class")
    return made


def run(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    if arguments.jobs < 1:
        raise InputError(f"--jobs: got {arguments.jobs}, expected 1 or more")
    laboratory = _laboratory(arguments)
    tables = sections(laboratory.backbone.recommended)
    laboratory.draw(arguments.kinds)
    wanted = [*TABLES, BOUNDS] if arguments.only is None else arguments.only
    try:
        mistakes = _work(list(jobs(tables, wanted, arguments.kinds, arguments.seeds)), arguments)
    finally:  # what is there is worth telling, also when the command is stopped
        _write(laboratory, tables, arguments, command)
    return 1 if mistakes else 0


def jobs(
    tables: dict[str, Section], wanted: Sequence[str], kinds: Sequence[str], seeds: Sequence[int]
) -> Iterator[Job]:
    """Each optimisation once, with every measurement that a wanted table makes of it: seed by seed, table by table."""
    if BOUNDS in wanted:
        yield from (Job(kind=kind) for kind in kinds)
    for number, seed in enumerate(seeds):
        found = [tables[name] for name in wanted if name in tables]
        for optimisation, measurements in _merged([each for each in found if number < (each.seeds or len(seeds))]):
            for kind in kinds:
                yield Job(kind=kind, seed=seed, optimisation=optimisation, measurements=tuple(measurements))


def _merged(tables: Sequence[Section]) -> list[tuple[Optimisation, list[Measurement]]]:
    measured: dict[str, tuple[Optimisation, list[Measurement]]] = {}
    for variant in (variant for table in tables for variant in table.variants):
        key = json.dumps([variant.optimisation.preset, variant.optimisation.shots, variant.optimisation.changes])
        measurements = measured.setdefault(key, (variant.optimisation, []))[1]
        if variant.measurement not in measurements:
            measurements.append(variant.measurement)
    return list(measured.values())


def _work(pending: list[Job], arguments: argparse.Namespace) -> int:
    """Carries the jobs out, tells of each, and counts those that failed."""
    mistakes = 0
    context = multiprocessing.get_context("spawn")
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # before the processes import torch
    with ProcessPoolExecutor(arguments.jobs, context, _begin, (arguments,)) as pool:
        doing = {pool.submit(_do, job): job for job in pending}
        try:
            for number, done in enumerate(as_completed(doing), 1):
                error = done.exception()
                told = f"failed: {first_line(error)}" if error else f"{done.result():.0f} s"
                mistakes += error is not None
                print(f"[{number}/{len(pending)}] {_name(doing[done])}: {told}", flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return mistakes


_here: Laboratory | None = None


def _begin(arguments: argparse.Namespace) -> None:
    """In a new process: its own copy of the backbone, and one thread to compute with."""
    global _here
    torch.set_num_threads(1)
    threading.Thread(target=_outlive_nobody, args=(os.getppid(),), daemon=True).start()
    _here = _laboratory(arguments)


def _outlive_nobody(parent: int) -> None:
    """Ends this process when the command was killed: nobody would tell it to stop."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _do(job: Job) -> float:
    """Seconds that the job took."""
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


def _name(job: Job) -> str:
    if job.optimisation is None:
        return f"{job.kind}, bounds"
    wanted = job.optimisation
    changes = "".join(f", {name} {value}" for name, value in wanted.changes.items() if name != "layers")
    return f"{job.kind}, seed {job.seed}, {wanted.preset}, {wanted.shots}-shot{changes}"


def _write(
    laboratory: Laboratory, tables: dict[str, Section], arguments: argparse.Namespace, command: Sequence[str]
) -> None:
    results = _results(laboratory, tables, arguments, command)
    write_text(arguments.out / "results.json", json.dumps(as_json(results), indent=1) + "\n")
    write_text(arguments.out / "results.md", markdown(results))
    print(arguments.out / "results.md", flush=True)


def _results(
    laboratory: Laboratory, tables: dict[str, Section], arguments: argparse.Namespace, command: Sequence[str]
) -> Results:
    kinds, seeds = tuple(arguments.kinds), tuple(arguments.seeds)
    figures = {}
    for name, section in tables.items():
        for variant in section.variants:
            figures[name, variant.label] = {
                kind: [
                    laboratory.measured(
                        Job(kind=kind, seed=seed, optimisation=variant.optimisation), variant.measurement
                    )
                    for seed in seeds
                ]
                for kind in kinds
            }
    return Results(
        kinds=kinds,
        seeds=seeds,
        sections=tables,
        figures=figures,
        bounds={kind: laboratory.bounds(kind) for kind in kinds},
        smallest={kind: laboratory.smallest(kind) for kind in kinds},
        about=_about(laboratory, command),
    )


def _about(laboratory: Laboratory, command: Sequence[str]) -> dict[str, Any]:
    backbone, trial = laboratory.backbone, laboratory.trial
    less = [
        f"{value} {name}" for name, value in (("steps", trial.steps), ("images", trial.images)) if value is not None
    ]
    return {
        "command": shlex.join(["python", "-m", "benchmarks.results", *command]),
        "trial": ", ".join(less) or None,
        "machine": f"{_processor()}, {os.cpu_count()} cores",
        "device": laboratory.device,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "versions": {"Python": platform.python_version(), **library_versions()},
        "backbone": {"id": backbone.id, "hash": backbone.hash},
    }


def _processor() -> str:
    """The processor's own name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


if __name__ == "__main__":
    sys.exit(main())
