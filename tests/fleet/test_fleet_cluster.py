"""`slime fleet` on a real Ray cluster of two nodes on this machine, of which one is killed in the middle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import ray
import torch
from fake_triton import FakeTriton
from PIL import Image
from ray.cluster_utils import Cluster

import backbones
from painting import PARTS, paint
from slime_cli.segment import main as segment
from slime_fleet.command import main
from slime_optimize import Segmenter
from slime_optimize.commands import run

# Ray warns of settings of its own.
pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]
NAMES = ("a", "b", "c")
STEPS = 24


class Nodes:
    """A head without processors, and nodes of one each."""

    def __init__(self) -> None:
        head = {"num_cpus": 0, "include_dashboard": False}
        head["_system_config"] = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = self._cluster.address
        self._nodes: list[Any] = []
        self.fill()

    def fill(self) -> None:
        """Start nodes until there are two."""
        while len(self._nodes) < 2:
            self._nodes.append(self._cluster.add_node(num_cpus=1))

    def kill(self) -> None:
        """End a node with all its processes, as when its machine is gone."""
        node = self._nodes.pop(0)
        workers = psutil.Process(node.all_processes["raylet"][0].process.pid).children(recursive=True)
        self._cluster.remove_node(node, allow_graceful=False)
        for each in workers:
            if each.is_running():
                each.kill()

    def close(self) -> None:
        ray.shutdown()
        ours = psutil.Process().children(recursive=True)
        self._cluster.shutdown()
        _, left = psutil.wait_procs([each for each in ours if "ray" in " ".join(_words(each))], timeout=60)
        assert not left


def _words(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    made = Nodes()
    yield made
    made.close()


def killing_when(holds: Callable[[], bool], nodes: Nodes) -> tuple[threading.Thread, threading.Event]:
    """Start a thread that kills a node as soon as `holds`; return it, and what is set once it has."""
    killed = threading.Event()

    def watch() -> None:
        deadline = time.monotonic() + 120
        while not holds():
            if time.monotonic() > deadline:
                return
            time.sleep(0.02)
        nodes.kill()
        killed.set()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread, killed


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone, painted pictures, and the table of segmenters to learn from them, with one that cannot be."""
    folder = tmp_path_factory.mktemp("fleet")
    backbones.build(folder / "backbone")
    lines = ["name,image,mask,parts,seed"]
    for index, name in enumerate((*NAMES, "missing")):
        image, mask = paint(index)
        if name != "missing":
            Image.fromarray(image).save(folder / f"{name}.png")
        Image.fromarray(mask).save(folder / f"{name}-parts.png")
        lines.append(f"{name},{name}.png,{name}-parts.png,{' '.join(PARTS)},{index}")
    (folder / "jobs.csv").write_text("\n".join(lines) + "\n")
    return folder


COMMON = ("--steps", str(STEPS), "--precision", "fp32", "--threshold", "0", "--checkpoint-every", "0", "--no-report")


@pytest.fixture(scope="module")
def learned(nodes: Nodes, work: Path) -> Path:
    """The table learned while a node was killed, and published."""
    out = work / "out"
    thread, killed = killing_when(lambda: len(list(out.glob("*/checkpoint-*"))) == 2, nodes)
    words = ["optimize", str(work / "jobs.csv"), "--out", str(out), "--address", nodes.address]
    words += ["--repository", str(work / "repository"), "--export", "--embedding shared"]
    code = main([*words, "--", *COMMON, "--backbone", str(work / "backbone")])
    thread.join()
    assert killed.is_set() and code == 1  # for the one without an image
    return out


def test_all_are_learned_each_as_alone(
    learned: Path, work: Path, nodes: Nodes, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = {line["name"]: line for line in json.loads((learned / "summary.json").read_text())}
    assert {name: line["state"] for name, line in summary.items()} == dict.fromkeys(NAMES, "learned") | {
        "missing": "failed"
    }
    assert "missing.png" in summary["missing"]["error"]
    assert sum(line.get("went_on", False) for line in summary.values()) == 1
    assert not list(learned.rglob("checkpoint*"))
    torch.set_num_threads(1)
    for index, name in enumerate(NAMES):
        words = ["--image", str(work / f"{name}.png"), "--mask", str(work / f"{name}-parts.png"), "--parts", *PARTS]
        words += [*COMMON, "--seed", str(index), "--backbone", str(work / "backbone"), "--quiet", "--device", "cpu"]
        assert run.main([*words, "--out", str(work / "alone" / name)]) == 0
        one, other = (Segmenter.load(folder / name) for folder in (learned, work / "alone"))
        assert torch.equal(one.text_embedding, other.text_embedding) and one.hash == other.hash


def test_the_same_command_does_only_what_is_missing(learned: Path, work: Path) -> None:
    """As people type it, with Ray on this machine alone."""
    Image.fromarray(paint(3)[0]).save(work / "missing.png")
    before = {name: (learned / name / "job.json").stat().st_mtime_ns for name in NAMES}
    words = ["fleet", "optimize", "jobs.csv", "--out", "out", "--", *COMMON, "--backbone", str(work / "backbone")]
    command = [sys.executable, "-m", "slime_cli", *words]
    done = subprocess.run(command, cwd=work, env={**os.environ, "HOME": str(work)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" there ") == 3 and done.stdout.count(" learned ") == 1
    assert "4 of 4 segmenters, 0 failed" in done.stdout and done.stdout.count(" 127.0.0.1") == 4
    assert before == {name: (learned / name / "job.json").stat().st_mtime_ns for name in NAMES}


@pytest.fixture(scope="module")
def photos(work: Path) -> Path:
    folder = work / "photos"
    (folder / "more").mkdir(parents=True)
    for index in range(40):
        image = paint(index)[0]
        Image.fromarray(image).save(folder / ("more" if index % 2 else ".") / f"{index}.jpg", quality=95)
    (folder / "bad.png").write_text("no picture")
    return folder


def rows(out: Path) -> dict[str, dict[str, object]]:
    found = [row for path in (out / "results").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    assert len({row["path"] for row in found}) == len(found)
    return {str(row["path"]): row for row in found}


def test_masks_are_those_of_slime_segment_and_a_kill_loses_none(
    learned: Path, photos: Path, work: Path, nodes: Nodes, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes.fill()
    out = work / "masks"
    thread, killed = killing_when(lambda: len(list(out.glob("masks/**/*.png"))) > 4, nodes)
    words = ["segment", str(photos), "--segmenter", "a", "--repository", str(work / "repository"), "--out", str(out)]
    words += ["--address", nodes.address, "--rows-per-file", "4"]
    assert main(words) == 1
    thread.join()
    assert killed.is_set()
    told = capsys.readouterr()
    assert "40 of 41 images have masks, 1 failed" in told.out and "error: bad.png: " in told.err
    assert (
        segment([str(photos / "more"), "--local", str(work / "repository" / "a"), "--out", str(work / "alone-masks")])
        == 0
    )
    found = rows(out)
    assert len(found) == 41 and found["bad.png"]["mask"] is None and "bad.png" in str(found["bad.png"]["error"])
    for path in (photos / "more").iterdir():
        row = found[f"more/{path.name}"]
        mask = out / str(row["mask"])
        assert mask.read_bytes() == (work / "alone-masks" / f"{path.stem}.png").read_bytes()
        with Image.open(mask) as picture:
            counted = np.bincount(np.asarray(picture).ravel(), minlength=len(PARTS)).tolist()
        assert row["areas"] == dict(zip(PARTS, counted, strict=True)) and row["error"] is None
        assert (row["height"], row["width"]) == (picture.height, picture.width)
    # What is done stays; what is new, was changed, or failed is done; a file that a kill has cut short goes.
    (out / "results" / "cut.parquet").write_bytes(b"PAR1")
    Image.fromarray(paint(1)[0]).save(photos / "bad.png")
    Image.fromarray(paint(2)[0][:40]).save(photos / "0.jpg")
    times = {path: path.stat().st_mtime_ns for path in out.glob("masks/more/*.png")}
    assert main(words) == 0
    assert "41 images, 39 of them done before" in capsys.readouterr().err
    assert times == {path: path.stat().st_mtime_ns for path in times}
    assert rows(out)["0.jpg"]["height"] == 40 and rows(out)["bad.png"]["error"] is None


def test_a_run_stops_when_no_server_is_left(
    photos: Path, work: Path, nodes: Nodes, capsys: pytest.CaptureFixture[str]
) -> None:
    servers = [FakeTriton(), FakeTriton()]
    for each in servers:
        each.start()
    out = work / "served"
    words = ["segment", str(photos), "--segmenter", "car", "--out", str(out), "--address", nodes.address]
    words += ["--masks", "parquet", "--rows-per-file", "2", "--workers", "1", "--timeout", "3"]

    def stop_all() -> None:
        while sum(len(each.received) for each in servers) < 20:
            time.sleep(0.01)
        for each in servers:
            each.vanish()

    for each in servers:
        each.delay_s = 0.2
    thread = threading.Thread(target=stop_all, daemon=True)
    thread.start()
    assert main([*words, "--url", f"ipv4:{','.join(each.url for each in servers)}"]) == 1
    thread.join()
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: stopped: ipv4:127.0.0.1:") and told.endswith("; the same command goes on")
    found = rows(out).values()  # of what was done before, as far as it was written
    assert len(found) < 41
    for row in found:
        assert row["mask"] is None and row["error"] is None and isinstance(row["mask_png"], bytes)
        half = int(str(row["height"])) * int(str(row["width"])) // 2
        assert half > 0 and row["areas"] == {"background": half, "body": half, "wheel": 0}
