"""Segmenters learned on a Ray cluster of two nodes of this machine, against the same ones learned one after the other.

    python -m benchmarks.fleet --steps 20 --json docs/fleet.json

Each node has one processor, and each segmenter one thread, on the embedded backbone. "One after the other" is one
process that learns them all, so that Python, PyTorch and the modules are loaded once, as in a worker of Ray. Starting
the cluster is not counted, as a cluster runs already; starting its workers is. The tensors must be the same.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import command_line, keeping, machine
from benchmarks.common.sides import BenchmarkError, positive, reported

WANTED = 1.7


def alone(table: Path, common: Sequence[str], out: Path) -> float:
    """Learn the table's segmenters one after the other in a process of its own; return the seconds it took."""
    begun = time.monotonic()
    process = multiprocessing.get_context("spawn").Process(target=_learn, args=(table, list(common), out))
    process.start()
    process.join()
    if process.exitcode:
        raise BenchmarkError(f"one after the other: exit code {process.exitcode}")
    return time.monotonic() - begun


def _learn(table: Path, common: list[str], out: Path) -> None:
    import torch

    from slime_fleet import jobs
    from slime_optimize.commands import run

    torch.set_num_threads(1)
    for job in jobs.read(table, common):
        with contextlib.redirect_stdout(io.StringIO()):
            code = run.main([*job.words, "--out", str(out / job.name), "--quiet", "--device", "cpu"])
        if code:
            sys.exit(code)


def together(table: Path, common: Sequence[str], out: Path) -> float:
    """Learn them with `slime fleet optimize` on two nodes; return the seconds it took."""
    os.environ.update(RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0", RAY_USAGE_STATS_ENABLED="0")  # on loopback alone
    from ray.cluster_utils import Cluster

    from slime_fleet.command import main as fleet

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        begun = time.monotonic()
        with contextlib.redirect_stdout(io.StringIO()):
            code = fleet(["optimize", str(table), "--out", str(out), "--address", str(cluster.address), "--", *common])
        if code:
            raise BenchmarkError(f"slime fleet optimize: exit code {code}")
        return time.monotonic() - begun
    finally:
        cluster.shutdown()


def write_table(folder: Path, count: int) -> Path:
    """Write drawn cars, their masks and the table that learns a segmenter from each; return the table."""
    from PIL import Image

    from slime_backbone.scene import parts_of, scene

    lines = ["name,image,mask,parts"]
    for index in range(count):
        drawn = scene("car", "test", index)
        Image.fromarray(drawn.image).save(folder / f"{index}.png")
        Image.fromarray(drawn.mask).save(folder / f"{index}-parts.png")
        lines.append(f"car-{index},{index}.png,{index}-parts.png,{' '.join(parts_of('car'))}")
    (folder / "jobs.csv").write_text("\n".join(lines) + "\n")
    return folder / "jobs.csv"


def measured(count: int, steps: int) -> dict[str, Any]:
    """Return the seconds of both ways, their ratio, and the machine. Raises BenchmarkError where tensors differ."""
    from slime_optimize import Segmenter

    about = machine.facts()
    with tempfile.TemporaryDirectory(prefix="slime-fleet-benchmark-") as scratch:
        folder = Path(scratch)
        table = write_table(folder, count)
        common = ("--preset", "paper", "--steps", str(steps), "--precision", "fp32", "--no-report")
        one, two = alone(table, common, folder / "alone"), together(table, common, folder / "together")
        for index in range(count):
            hashes = {Segmenter.load(folder / way / f"car-{index}").hash for way in ("alone", "together")}
            if len(hashes) > 1:
                raise BenchmarkError(f"car-{index}: differs from the one learned alone")
    return {
        "machine": about,
        "segmenters": count,
        "steps": steps,
        "alone_s": round(one, 1),
        "two_nodes_s": round(two, 1),
        "ratio": round(one / two, 2),
    }


@reported
def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return its exit code."""
    parser = command_line.parser(__doc__)
    parser.add_argument("--segmenters", type=positive, default=24, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--steps", type=positive, default=30, metavar="N", help="of each (default: %(default)s)")
    keeping.add_options(parser, page=False)
    options = parser.parse_args(argv)
    machine.set_threads(1)
    result = measured(options.segmenters, options.steps)
    keeping.keep(options, result)
    about = result["machine"]
    print(
        f"{result['segmenters']} segmenters of {result['steps']} steps on {about['cpu']}, {about['cores']} cores: "
        f"{result['alone_s']} s one after the other, {result['two_nodes_s']} s on two nodes, {result['ratio']} times "
        f"as fast (wanted: {WANTED}); every tensor the same; load before {about['load_before'][0]}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
