"""Learns the segmenters of a table on a Ray cluster: each in a task of its own, which Ray retries elsewhere.

    OUT/NAME/           what slime optimize writes, and job.json, last: what it was made from and how it went
    OUT/NAME/checkpoint-….safetensors     while it is learned; it goes when the segmenter is there
    OUT/summary.csv, summary.json         a line for each job

A node's disk is lost with the node, so a task works in a scratch folder, and its checkpoints go to OUT at once.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError
from tabulate import tabulate

from slime_client.progress import Lines
from slime_export.commands import build
from slime_export.publish.live import LiveSegmenter
from slime_fleet.folder import Folder
from slime_fleet.jobs import INPUTS, Job
from slime_optimize.commands import run
from slime_optimize.errors import OptimisationError, first_line
from slime_optimize.method.checkpoint import CHECKPOINT_FILE, Checkpoint, State
from slime_optimize.segmenter import JSON_FILE, Segmenter
from slime_repository.errors import RepositoryError

DONE_FILE = "job.json"
SUMMARY = "summary"
RETRIES = 5  # of a job whose node died, or whose disk or store failed
COLUMNS = ("name", "state", "mean_iou", "validation_iou", "seconds", "went_on", "node", "published", "error")
LEARNED, THERE, FAILED = "learned", "there", "failed"
_LONGEST_TABLE = 60


class StoredCheckpoint(Checkpoint):
    """A checkpoint that is also in `place`, for whoever goes on with the run on another node."""

    def __init__(self, folder: Path, every: float, place: Folder, made_from: str) -> None:
        super().__init__(folder, every)
        self._place, self.name = place, f"{Path(CHECKPOINT_FILE).stem}-{made_from[:16]}.safetensors"
        self.went_on = False
        if content := place.read(self.name):
            folder.mkdir(parents=True, exist_ok=True)
            self.path.write_bytes(content)
            self.went_on = True

    def save(self, state: State, identity: Mapping[str, Any]) -> None:
        """Write the state here, then there."""
        super().save(state, identity)
        self._place.write(self.name, self.path.read_bytes())


def learn(job: Job, out: str, threads: int) -> dict[str, Any]:
    """Learn one segmenter into OUT/NAME, unless it is there; return its line of the summary. Runs on the cluster.

    Raises what `slime optimize` tells in one line: InputError, ImageError, RuntimeError or OSError.
    """
    torch.set_num_threads(threads)
    place, made_from = Folder(f"{out}/{job.name}"), job.made_from()
    told = place.read_json(DONE_FILE)
    if told.get("made_from") == made_from:
        return {**told, "state": THERE}
    with tempfile.TemporaryDirectory(prefix="slime-fleet-") as scratch:
        folder = Path(scratch) / job.name
        words = [*_local(job.words, Path(scratch) / "inputs"), "--out", str(folder), "--quiet"]
        arguments = run.parser(prog="slime optimize").parse_args(words)
        checkpoint = StoredCheckpoint(folder, arguments.checkpoint_every, place, made_from)
        command = shlex.join(["slime", "optimize", *job.words, "--out", job.name])
        try:
            run.run(arguments, checkpoint, command, lambda _: None)
        except OptimisationError:
            place.remove(checkpoint.name)  # a run that went on from it would only fail at the same step again
            raise
        metrics = json.loads((folder / JSON_FILE).read_text(encoding="utf-8"))["metrics"]
        line = {
            "name": job.name,
            "state": LEARNED,
            "mean_iou": metrics["training"]["mean_iou"],
            "validation_iou": metrics.get("validation", {}).get("mean_iou"),
            "seconds": metrics["seconds"],
            "went_on": checkpoint.went_on,
            "node": ray.util.get_node_ip_address(),
            "made_from": made_from,
        }
        # The description after the weights, and the line of the job after both: who sees it sees all.
        for path in sorted(folder.iterdir(), key=lambda path: path.name == JSON_FILE):
            place.write(path.name, path.read_bytes())
        place.write_json(DONE_FILE, line)
        for name in place.files():
            if name.startswith(Path(CHECKPOINT_FILE).stem):
                place.remove(name)
    return line


def _local(words: Sequence[str], folder: Path) -> list[str]:
    """Return the words with inputs that lie in an object store copied into `folder`."""
    found, option = [], ""
    for number, word in enumerate(words):
        option = word[2:] if word.startswith("--") else option
        if option in INPUTS and "://" in word:
            target = folder / str(number) / word.rstrip("/").rpartition("/")[2]
            Folder(word).fetch(target)
            word = str(target)
        found.append(word)
    return found


def learn_all(jobs: Sequence[Job], out: str, *, cpus: float, gpus: float) -> list[dict[str, Any]]:
    """Learn the segmenters on the cluster that Ray is connected to; return the summary's lines, in the jobs' order."""
    device = "cuda" if gpus else "cpu"
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES, retry_exceptions=[OSError])(learn)
    lines: dict[str, dict[str, Any]] = {job.name: _failed(job, job.error) for job in jobs if job.error}
    told, begun, place = Lines(sys.stderr), time.monotonic(), Folder(out)
    _note_what_does_not_fit(told, cpus, gpus)
    for line in lines.values():
        told.line(_shown(line))
    flying = {}
    for job in jobs:
        if not job.error:
            words = job.words if "--device" in job.words else ("--device", device, *job.words)
            sent = Job(name=job.name, words=words)
            flying[task.options(name=f"learn {job.name}").remote(sent, place.url, max(1, int(cpus)))] = job
    while flying:
        for done in ray.wait(list(flying), timeout=10.0)[0]:
            job = flying.pop(done)
            lines[job.name] = _outcome(job, done, place)
            told.line(_shown(lines[job.name]))
        states = Counter(line["state"] for line in lines.values())
        left = len(flying) * (time.monotonic() - begun) / states[LEARNED] if states[LEARNED] else 0.0
        about = f", about {_duration(left)} left" if left else ""
        told.rewrite(
            f"{states[LEARNED] + states[THERE]} done, {states[FAILED]} failed, {len(flying)} of {len(jobs)} left{about}"
        )
    return [lines[job.name] for job in jobs]


def _outcome(job: Job, done: Any, place: Folder) -> dict[str, Any]:
    try:
        line: dict[str, Any] = ray.get(done)
    except RayTaskError as error:
        return _failed(job, first_line(error.cause))
    except RayError as error:
        return _failed(job, f"lost {RETRIES + 1} times with its node or process ({first_line(error)})")
    if not place.read_json(f"{job.name}/{DONE_FILE}"):
        return _failed(
            job, f"--out {place.url}: what node {line['node']} wrote is not there; give a folder that all nodes share"
        )
    return line


def _failed(job: Job, error: str) -> dict[str, Any]:
    return {"name": job.name, "state": FAILED, "error": " ".join(error.split())}


def _shown(line: Mapping[str, Any]) -> str:
    if line["state"] == FAILED:
        return f"error: {line['name']}: {line['error']}"
    return f"{line['name']}: {line['state']}, mean IoU on the training data {line['mean_iou']:.1f} %"


def _note_what_does_not_fit(told: Lines, cpus: float, gpus: float) -> None:
    there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(each.get("CPU", 0) >= cpus and each.get("GPU", 0) >= gpus for each in there):
        told.line(f"note: no node has {cpus:g} CPUs and {gpus:g} GPUs now; waiting for one")


def _duration(seconds: float) -> str:
    return (
        f"{seconds / 3600:.1f} h"
        if seconds > 5400
        else f"{seconds / 60:.0f} min"
        if seconds > 90
        else f"{seconds:.0f} s"
    )


def publish(lines: Sequence[dict[str, Any]], out: str, repository: Path, words: Sequence[str]) -> None:
    """Export and publish, here, each segmenter that is there; note in its line that it is, or why it is not.

    `words` are options of `slime export`. What serves already, learned from the same, is left.
    """
    told = Lines(sys.stderr)
    for line in lines:
        if line["state"] == FAILED:
            continue
        with tempfile.TemporaryDirectory(prefix="slime-fleet-") as scratch:
            folder = Path(scratch) / line["name"]
            Folder(f"{out}/{line['name']}").fetch(folder)
            if not _serves(repository, folder):
                said = io.StringIO()
                with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                    code = build.main([str(folder), "--repository", str(repository), *words], prog="slime export")
                if code:
                    why = said.getvalue().strip().splitlines()[-1].removeprefix("error: ")
                    line |= {"state": FAILED, "error": f"learned, but not published: {why}"}
                    told.line(_shown(line))
                    continue
        line["published"] = str(repository)
        told.line(f"{line['name']}: published in {repository}")


def _serves(repository: Path, folder: Path) -> bool:
    try:
        about = LiveSegmenter(repository, folder.name).about
    except RepositoryError:
        return False
    return bool(about.get("segmenter") == Segmenter.load(folder).hash)


def summarise(lines: Sequence[Mapping[str, Any]], out: str) -> None:
    """Write the summary beside the segmenters, and print it as a table; of very many, the failed ones."""
    place, table = Folder(out), io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, extrasaction="ignore", restval="")
    writer.writeheader()
    writer.writerows(lines)
    place.write(f"{SUMMARY}.csv", table.getvalue().encode())
    place.write(f"{SUMMARY}.json", json.dumps(list(lines), indent=2, ensure_ascii=False).encode())
    shown = [line for line in lines if len(lines) <= _LONGEST_TABLE or line["state"] == FAILED]
    rows = [[line.get(column) for column in COLUMNS] for line in shown]
    print(tabulate(rows, COLUMNS, floatfmt=".1f", missingval=""))
    states = Counter(line["state"] for line in lines)
    there, where = len(lines) - states[FAILED], f"{place.url}/{SUMMARY}.csv"
    print(f"{there} of {len(lines)} segmenters, {states[FAILED]} failed -> {where}")
