"""The server under load, against the same networks in one process: latency, throughput, rejects, where the time goes.

    python -m benchmarks.load --json docs/load.json --page docs/load.md

Closed loop (1, 2, 4, 8 clients), the same server computing one image at a time, and the in-process floor take turns in
each round. Then two requests at a time with nothing after them, an open loop at rising rates, and three times the
capacity, in turn with eight clients. `--soak N` asks N times and samples the memory of every server process. A run
without options takes about six minutes.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.common import command_line, keeping, machine, served_repository
from benchmarks.common.figures import Goal, growth, percentile, ratio
from benchmarks.common.server import PARTS, Launched, cpu_seconds, launched
from benchmarks.common.sides import BenchmarkError, Side, positive, reported, say, started
from benchmarks.load.figures import Runs, in_time, late, median_ms, pooled, summary

from slime_repository import layout

CLIENTS = (1, 2, 4, 8)
MOST = CLIENTS[-1]
RATES = (0.25, 0.5, 0.75, 0.9, 1.1)  # of the capacity
OVERLOAD = 3.0
OVERLAPS = 500  # pairs
LATE_S = 0.4  # above the median; Triton's batchers look for a free network every half second, where they missed it
DEADLINE_S = 5.0  # of a request under overload
SOAK_CLIENTS = 4
SOAK_SAMPLE_S = 2.0
GOALS = {
    "latency_to_floor": Goal(
        label="p50 of one client over gRPC / sum of the stages in one process", relation="≤", wanted=1.25, form=".2f"
    ),
    "throughput_to_floor": Goal(
        label="throughput at saturation / throughput in one process", relation="≥", wanted=0.9, form=".2f"
    ),
    "unet_batch": Goal(label="mean batch of the UNet with 8 clients", relation="≥", wanted=3.0, form=".1f"),
    "batched_to_one_by_one": Goal(
        label="throughput with batches / one image at a time, 8 clients", relation="≥", wanted=1.0, form=".2f"
    ),
    "overlaps_late": Goal(
        label="two at a time: requests that took 0.4 s more than the median, of 1,000", relation="≤", wanted=0.0,
        form=".0f",
    ),
    "overload_in_time": Goal(
        label="overload: share of accepted requests answered within their deadline", relation="≥", wanted=1.0,
        form=".3f",
    ),
    "overload_reject_ms": Goal(
        label="overload: median time of a rejection at the client, ms", relation="≤", wanted=50.0, form=".0f"
    ),
    "overload_to_peak": Goal(label="overload: throughput / peak throughput", relation="≥", wanted=0.95, form=".2f"),
}  # fmt: skip
FLAT = Goal(label="soak: growth of memory and /dev/shm, MiB", relation="≤", wanted=8.0)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What is measured by turns: the server, the same without batches, a client of each, and the floor."""

    server: Launched
    one_by_one: Launched
    client: Side
    client_of_one_by_one: Side
    floor: Side
    targets: list[served_repository.Target]
    side: int

    def ask(self, runs: Runs, *, batched: bool = True, **order: Any) -> dict[str, Any]:
        """Give one order to the client, noted in `runs`."""
        server = self.server if batched else self.one_by_one
        client = self.client if batched else self.client_of_one_by_one
        return runs.ask(server, client, targets=self.targets, side=self.side, **order)


@dataclass
class Floor:
    """The same steps without a server: seconds of single images, round by round, and images a second in batches."""

    singles: list[list[dict[str, float]]] = field(default_factory=list)
    rates: dict[int, list[float]] = field(default_factory=lambda: {1: [], MOST: []})
    cpu_ms: dict[int, list[float]] = field(default_factory=lambda: {1: [], MOST: []})

    def measure(self, bench: Bench, seconds: float) -> None:
        for batch, rates in self.rates.items():
            until, used = time.perf_counter() + seconds, cpu_seconds(bench.floor.process.pid)
            turns: list[dict[str, float]] = []
            while time.perf_counter() < until:
                order = {"batch": batch, "side": bench.side, "first": len(turns) % 8 if batch == 1 else 0}
                turns.append(bench.floor.ask(order)["seconds"])
            images = batch * len(turns)
            self.cpu_ms[batch].append(1000 * (cpu_seconds(bench.floor.process.pid) - used) / images)
            rates.append(images / sum(each["total"] for each in turns))
            if batch == 1:
                self.singles.append(turns)

    def medians_ms(self) -> list[float]:
        """Return the median of the sum of the stages, round by round."""
        return [float(np.median([_stages_ms(each) for each in turn])) for turn in self.singles]

    def best(self) -> list[float]:
        """Return images a second, round by round, with the batch that is faster over all."""
        return max(self.rates.values(), key=sum)

    def summary(self) -> dict[str, Any]:
        every = [each for turn in self.singles for each in turn]
        names = [name for name in every[0] if name != "total"]
        return {
            "p50_ms": percentile([_stages_ms(each) for each in every], 50),
            "stages_ms": {name: percentile([1000 * each[name] for each in every], 50) for name in names},
            "throughput": {str(batch): sum(rates) / len(rates) for batch, rates in self.rates.items()},
            "cpu_ms": {str(batch): sum(spent) / len(spent) for batch, spent in self.cpu_ms.items()},
        }


def _stages_ms(seconds: Mapping[str, float]) -> float:
    return 1000 * sum(value for name, value in seconds.items() if name != "total")


@contextmanager
def prepared(repository: Path, names: list[str]) -> Iterator[Bench]:
    """Start everything and warm it up. The first of the names is the floor's."""
    files, side = served_repository.networks(repository, names[0]), served_repository.image_side(repository, names[0])
    words = ("--encoder", files.encoder, "--unet", files.unet, "--pixels", side)
    with ExitStack() as stack:
        copy = stack.enter_context(served_repository.without_batches(repository))
        server = stack.enter_context(launched(repository))
        one_by_one = stack.enter_context(launched(copy, "--no-verify"))
        client, other = (
            stack.enter_context(started("client", "benchmarks.load.client", each.url)) for each in (server, one_by_one)
        )
        threads = ("--threads", len(os.sched_getaffinity(0)))
        floor = stack.enter_context(started("floor", "benchmarks.pipeline.side", "served", *words, *threads))
        for each in (client, other, floor):
            each.ask()
        bench = Bench(
            server=server,
            one_by_one=one_by_one,
            client=client,
            client_of_one_by_one=other,
            floor=floor,
            targets=[served_repository.target(repository, name) for name in names],
            side=side,
        )
        for batched in (True, False):
            bench.ask(Runs(), batched=batched, clients=MOST, seconds=2.0)
            bench.ask(Runs(), batched=batched, clients=1, seconds=1.0)
        yield bench


def measured(bench: Bench, rounds: int, seconds: float, open_seconds: float) -> dict[str, Any]:
    """Return the figures of all loops; `seconds` is the length of each run."""
    closed: dict[int, Runs] = {clients: Runs() for clients in CLIENTS}
    one_by_one, floor, overload, peak = Runs(), Floor(), Runs(), Runs()
    for turn in range(rounds):
        say(f"round {turn + 1} of {rounds}")
        floor.measure(bench, seconds)
        for clients, runs in closed.items():
            bench.ask(runs, clients=clients, seconds=seconds)
        bench.ask(one_by_one, batched=False, clients=MOST, seconds=seconds)
    saturated = max(closed.values(), key=lambda runs: sum(runs.throughputs()))
    capacity = sum(saturated.throughputs()) / rounds
    say("two at a time")
    single_s = median_ms(closed[1].answers[-1]) / 1000
    overlaps = bench.ask(Runs(), overlaps=OVERLAPS, within=single_s)
    rates = {share: Runs() for share in RATES}
    for share, runs in rates.items():
        say(f"open loop, {share:g} of {capacity:.1f} images a second")
        bench.ask(runs, rate=share * capacity, seconds=open_seconds, seed=int(100 * share))
    for turn in range(rounds):
        say(f"overload, round {turn + 1} of {rounds}")
        bench.ask(peak, clients=MOST, seconds=seconds)
        bench.ask(overload, rate=OVERLOAD * capacity, seconds=open_seconds, deadline=DEADLINE_S, seed=turn)
    every = pooled(overload.answers)
    return {
        "floor": floor.summary(),
        "closed": {str(clients): runs.summary() for clients, runs in closed.items()},
        "one_by_one": one_by_one.summary(),
        "capacity": capacity,
        "open": {str(share): runs.summary() | {"rate": share * capacity} for share, runs in rates.items()},
        "overload": overload.summary() | {"rate": OVERLOAD * capacity, "deadline_s": DEADLINE_S},
        "ratios": {
            "latency_to_floor": ratio([median_ms(answer) for answer in closed[1].answers], floor.medians_ms()),
            "throughput_to_floor": ratio(saturated.throughputs(), floor.best()),
            "unet_batch": closed[MOST].unet_batch(),
            "batched_to_one_by_one": ratio(closed[MOST].throughputs(), one_by_one.throughputs()),
            "overlaps_late": late(overlaps, LATE_S),
            "overload_in_time": in_time(every, DEADLINE_S),
            "overload_reject_ms": summary(every)["reject_p50_ms"],
            "overload_to_peak": ratio(overload.throughputs(), peak.throughputs()),
        },
    }


def soaked(bench: Bench, requests: int, seconds: float) -> dict[str, Any]:
    """Ask `requests` times, or until `seconds` have passed, in orders of a few seconds; sample memory in between."""
    samples, done, begun = [bench.server.memory()], 0, time.perf_counter()
    errors: dict[str, int] = {}
    while done < requests and time.perf_counter() - begun < seconds:
        figures = summary(bench.ask(Runs(), clients=SOAK_CLIENTS, seconds=SOAK_SAMPLE_S, count=requests - done))
        done += figures["requests"] - figures["rejects"] - sum(figures["errors"].values())
        for status, count in (figures["errors"] | {"UNAVAILABLE": figures["rejects"]}).items():
            errors[status] = errors.get(status, 0) + count
        samples.append(bench.server.memory())
        if len(samples) % 30 == 0:
            say(f"soak: {done} of {requests} requests")
    return {
        "wanted": requests,
        "requests": done,
        "errors": {status: count for status, count in errors.items() if count},
        "seconds": time.perf_counter() - begun,
        "memory_mib": growth(samples),
    }


def goals(result: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return a row for each figure that was wanted: the figure, what was wanted, what was measured, the verdict."""
    rows = [goal.row(result["ratios"][key]) for key, goal in GOALS.items() if key in result["ratios"]]
    if "soak" not in result:
        return [*rows, (FLAT.label, f"≤ {FLAT.wanted:g}", "not run", "")]
    grown = sum(each["growth"] for each in result["soak"]["memory_mib"].values())
    return [*rows, FLAT.row(grown, f"{grown:.1f} in {result['soak']['requests']:,} requests")]


def page(result: Mapping[str, Any], plotted: str = "load.png") -> str:
    """Return the whole document."""
    return keeping.render("load/page.md.j2", result=result, goals=goals(result), parts=PARTS, plotted=plotted)


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Draw latency against throughput in both loops."""
    with keeping.drawn(path, 1, 2, (10, 3.8)) as ((left, right),):
        for share in (50, 95, 99):
            for panel, name in ((left, "closed"), (right, "open")):
                rows = list(result[name].values())
                latencies = [row[f"p{share}_ms"] for row in rows]
                panel.plot([row["throughput"] for row in rows], latencies, "o-", label=f"p{share}")
        for clients, row in result["closed"].items():
            left.annotate(f" {clients}", (row["throughput"], row["p50_ms"]))
        left.axhline(result["floor"]["p50_ms"], color="grey", linestyle=":", label="one process, p50")
        left.set_title("closed loop (number: clients)", loc="left")
        right.set_title("open loop, rising rates", loc="left")
        for panel in (left, right):
            panel.set(xlabel="masks a second", ylabel="ms from when it was due")
            panel.set_ylim(bottom=0)
            panel.legend(fontsize="small")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return everything that the options ask for. Raises BenchmarkError where it cannot be measured."""
    if options.repository is None:
        options.repository = Path("build/load/repository")
        served_repository.export(options.segmenter, options.repository, "car", "--maps", options.maps)
    names = options.segmenters or layout.segmenters(options.repository)[:1]
    if not names:
        raise BenchmarkError(
            f"repository {options.repository}: serves no segmenter; export one, or leave --repository out"
        )
    facts = machine.facts()
    known = keeping.read(options.json) if options.json and options.json.exists() else {}
    with prepared(options.repository, names) as bench:
        result = known
        if not options.soak_only:
            result = {"machine": facts, **measured(bench, options.rounds, options.seconds, options.open_seconds)}
        if options.soak:
            result["soak"] = soaked(bench, options.soak, options.soak_seconds)
        elif "soak" in known:
            result["soak"] = known["soak"]
    return result


@reported
def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 1 where it cannot be measured."""
    parser = command_line.parser(__doc__)
    parser.add_argument("--repository", type=Path, help="default: one of the embedded backbone, in build/load")
    served_repository.add_options(parser)
    parser.add_argument("--segmenters", nargs="+", metavar="NAME", help="asked for by turns; the first is the floor's")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each run of a closed loop, and of the floor's")
    parser.add_argument("--open-seconds", type=float, default=10.0, help="of each run of an open loop")
    parser.add_argument("--soak", type=int, default=0, metavar="N", help="then N requests, memory sampled")
    parser.add_argument("--soak-seconds", type=float, default=3600.0, help="at the most")
    parser.add_argument("--soak-only", action="store_true", help="add the soak to the figures in --json")
    keeping.add_options(parser)
    options = parser.parse_args(argv)
    result = measure(options)
    print(keeping.table(("figure", "wanted", "measured", ""), goals(result)))
    keeping.keep(options, result, page, plot=plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
