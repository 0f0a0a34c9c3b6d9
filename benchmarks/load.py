"""The server under load, against the same networks in one process: latency, throughput, rejects, where the time goes.

    python -m benchmarks.load --json docs/load.json --page docs/load.md --plot docs/load.png

Closed loop (1, 2, 4, 8 clients), the same server computing one image at a time, and the in-process floor take turns in
each round. Then an open loop at rising rates, then three times the capacity, in turn with eight clients. `--soak N`
asks N times and samples the memory of every server process. Bounded in time: about six minutes as it stands.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.load_server import Counts, Launched, cpu_seconds, difference, launched, per_request, together
from benchmarks.sides import BenchmarkError, Side, cpu, positive, started, write

from benchmarks import load_figures, load_page, load_repository
from slime_export.publish import layout
from slime_repository.contract import is_unet

CLIENTS = (1, 2, 4, 8)
MOST = CLIENTS[-1]
RATES = (0.25, 0.5, 0.75, 0.9, 1.1)  # of the capacity
OVERLOAD = 3.0
DEADLINE_S = 5.0  # of a request under overload
SOAK_CLIENTS = 4
SOAK_SAMPLE_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Bench:
    """All that is measured by turns: the server, the same without batches, the client, and the floor."""

    server: Launched
    one_by_one: Launched
    client: Side
    client_of_one_by_one: Side
    floor: Side
    targets: list[load_repository.Target]
    side: int


@dataclass
class Runs:
    """Answers of one kind of run, round by round, what the server counted meanwhile, and the CPU time it used."""

    answers: list[dict[str, Any]] = field(default_factory=list)
    counted: list[Counts] = field(default_factory=list)
    cpu_seconds: float = 0.0

    @contextmanager
    def watched(self, server: Launched) -> Iterator[None]:
        before, used = server.counts(), server.cpu_seconds()
        yield
        self.cpu_seconds += server.cpu_seconds() - used
        self.counted.append(difference(before, server.counts()))

    def summary(self) -> dict[str, Any]:
        figures = load_figures.summary(load_figures.pooled(self.answers))
        masks = max(1.0, figures["throughput"] * figures["seconds"])
        return figures | {"cpu_ms": 1000 * self.cpu_seconds / masks, "models": self.models()}

    def models(self) -> dict[str, dict[str, float]]:
        return per_request(together(self.counted))

    def throughputs(self) -> list[float]:
        return [load_figures.throughput(each) for each in self.answers]


def asked(bench: Bench, runs: Runs, *, batched: bool = True, **order: Any) -> dict[str, Any]:
    """One order of the client, noted in `runs`."""
    server, client = (bench.server, bench.client) if batched else (bench.one_by_one, bench.client_of_one_by_one)
    with runs.watched(server):
        answer = client.ask(json.dumps({"targets": bench.targets, "side": bench.side, **order}))
    runs.answers.append(answer)
    return answer


@dataclass
class Floor:
    """The same steps without a server: seconds of single images, round by round, and images a second in batches."""

    singles: list[list[dict[str, float]]] = field(default_factory=list)
    rates: dict[int, list[float]] = field(default_factory=dict)
    cpu_ms: dict[int, list[float]] = field(default_factory=dict)

    def measure(self, bench: Bench, seconds: float) -> None:
        self.singles.append(self._turns(bench, 1, seconds))
        self.rates.setdefault(1, []).append(1 / _mean(self.singles[-1]))
        turns = self._turns(bench, MOST, seconds)
        self.rates.setdefault(MOST, []).append(MOST / _mean(turns))

    def _turns(self, bench: Bench, batch: int, seconds: float) -> list[dict[str, float]]:
        until, used = time.perf_counter() + seconds, cpu_seconds(bench.floor.process.pid)
        found: list[dict[str, float]] = []
        while time.perf_counter() < until:
            order = {"batch": batch, "side": bench.side, "first": len(found) % 8 if batch == 1 else 0}
            found.append(bench.floor.ask(json.dumps(order))["seconds"])
        each = (cpu_seconds(bench.floor.process.pid) - used) / (batch * len(found))
        self.cpu_ms.setdefault(batch, []).append(1000 * each)
        return found

    def medians_ms(self) -> list[float]:
        """Of the sum of the stages, round by round."""
        return [float(np.median([1000 * _stages(each) for each in turn])) for turn in self.singles]

    def best(self) -> list[float]:
        """Images a second, round by round, with the batch that is faster over all."""
        return max(self.rates.values(), key=sum)

    def summary(self) -> dict[str, Any]:
        every = [each for turn in self.singles for each in turn]
        names = [name for name in every[0] if name != "total"]
        return {
            "p50_ms": load_figures.percentile([1000 * _stages(each) for each in every], 50),
            "stages_ms": {name: load_figures.percentile([1000 * each[name] for each in every], 50) for name in names},
            "throughput": {str(batch): sum(rates) / len(rates) for batch, rates in self.rates.items()},
            "cpu_ms": {str(batch): sum(spent) / len(spent) for batch, spent in self.cpu_ms.items()},
        }


def _stages(seconds: Mapping[str, float]) -> float:
    return sum(value for name, value in seconds.items() if name != "total")


def _mean(turns: list[dict[str, float]]) -> float:
    return sum(each["total"] for each in turns) / len(turns)


@contextmanager
def prepared(options: argparse.Namespace) -> Iterator[Bench]:
    """Everything started and warm."""
    repository, names = options.repository, options.segmenters
    files = load_repository.networks(repository, names[0])
    threads = len(os.sched_getaffinity(0))
    with ExitStack() as stack:
        copy = stack.enter_context(load_repository.without_batches(repository))
        server = stack.enter_context(launched(repository))
        one_by_one = stack.enter_context(launched(copy, "--no-verify"))
        words = ("onnx", "--encoder", files.encoder, "--unet", files.unet, "--threads", threads)
        bench = Bench(
            server=server,
            one_by_one=one_by_one,
            client=stack.enter_context(started("client", "benchmarks.load_client", server.url)),
            client_of_one_by_one=stack.enter_context(started("client", "benchmarks.load_client", one_by_one.url)),
            floor=stack.enter_context(started("floor", "benchmarks.pipeline_side", *words)),
            targets=[load_repository.target(repository, name) for name in names],
            side=load_repository.image_side(repository, names[0]),
        )
        bench.floor.ask()
        for batched in (True, False):
            asked(bench, Runs(), batched=batched, clients=MOST, seconds=2.0)
            asked(bench, Runs(), batched=batched, clients=1, seconds=1.0)
        yield bench


def measured(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    closed: dict[int, Runs] = {clients: Runs() for clients in CLIENTS}
    one_by_one, floor = Runs(), Floor()
    for turn in range(options.rounds):
        say(f"round {turn + 1} of {options.rounds}")
        floor.measure(bench, options.seconds)
        for clients, runs in closed.items():
            asked(bench, runs, clients=clients, seconds=options.seconds)
        asked(bench, one_by_one, batched=False, clients=MOST, seconds=options.seconds)
    capacity = max(sum(runs.throughputs()) / options.rounds for runs in closed.values())
    rates = {share: Runs() for share in RATES}
    for share, runs in rates.items():
        say(f"open loop, {share:g} of {capacity:.1f} images a second")
        asked(bench, runs, rate=share * capacity, seconds=options.open_seconds, seed=int(100 * share))
    overload, peak = Runs(), Runs()
    for turn in range(options.rounds):
        say(f"overload, round {turn + 1} of {options.rounds}")
        asked(bench, peak, clients=MOST, seconds=options.seconds)
        much = OVERLOAD * capacity
        asked(bench, overload, rate=much, seconds=options.open_seconds, deadline=DEADLINE_S, seed=turn)
    return {
        "floor": floor.summary(),
        "closed": {str(clients): runs.summary() for clients, runs in closed.items()},
        "one_by_one": one_by_one.summary(),
        "capacity": capacity,
        "open": {str(share): runs.summary() | {"rate": share * capacity} for share, runs in rates.items()},
        "overload": overload.summary() | {"rate": OVERLOAD * capacity, "deadline_s": DEADLINE_S},
        "ratios": ratios(floor, closed, one_by_one, overload, peak),
    }


def ratios(floor: Floor, closed: Mapping[int, Runs], one_by_one: Runs, overload: Runs, peak: Runs) -> dict[str, Any]:
    """What was asked for, of runs that took turns."""
    saturated = max(closed.values(), key=lambda runs: sum(runs.throughputs()))
    medians = [load_figures.median_ms(answer) for answer in closed[1].answers]
    every = load_figures.pooled(overload.answers)
    return {
        "latency_to_floor": load_figures.ratio(medians, floor.medians_ms()),
        "throughput_to_floor": load_figures.ratio(saturated.throughputs(), floor.best()),
        "unet_batch": unet_batch(closed[MOST].models()),
        "batched_to_one_by_one": load_figures.ratio(closed[MOST].throughputs(), one_by_one.throughputs()),
        "overload_in_time": load_figures.in_time(every, DEADLINE_S),
        "overload_reject_ms": load_figures.summary(every)["reject_p50_ms"],
        "overload_to_peak": load_figures.ratio(overload.throughputs(), peak.throughputs()),
    }


def unet_batch(models: Mapping[str, Mapping[str, float]]) -> float:
    """Mean, of the UNet that was asked most: the launcher's probes ask others as well."""
    return max((each["requests"], each["batch"]) for name, each in models.items() if is_unet(name))[1]


def soaked(bench: Bench, requests: int, seconds: float) -> dict[str, Any]:
    """Asks `requests` times, or until `seconds` have passed, in orders of a few seconds; samples in between."""
    samples, done, begun = [bench.server.memory()], 0, time.perf_counter()
    errors: dict[str, int] = {}
    while done < requests and time.perf_counter() - begun < seconds:
        answer = asked(bench, Runs(), clients=SOAK_CLIENTS, seconds=SOAK_SAMPLE_S, count=requests - done)
        figures = load_figures.summary(answer)
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
        "memory_mib": load_figures.growth(samples),
    }


def machine() -> dict[str, Any]:
    load = [round(each, 1) for each in os.getloadavg()]
    return {"cpu": cpu(), "cores": len(os.sched_getaffinity(0)), "load_before": load, "date": time.strftime("%Y-%m-%d")}


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """Exit code 1 where it cannot be measured."""
    options = _arguments()
    try:
        result = _result(options)
    except BenchmarkError as error:
        say(f"error: {error}")
        return 1
    if options.json:
        write(options.json, json.dumps(result, indent=1) + "\n")
    print(load_page.goals(result))
    if options.page:
        write(options.page, load_page.markdown(result, options.plot))
    if options.plot and "closed" in result:
        load_page.plot(result, options.plot)
    return 0


def _result(options: argparse.Namespace) -> dict[str, Any]:
    if options.repository is None:
        options.repository = Path("build/load/repository")
        load_repository.export(options.segmenter, options.repository, "car", "--maps", options.maps)
    options.segmenters = options.segmenters or layout.segmenters(options.repository)[:1]
    if not options.segmenters:
        raise BenchmarkError(
            f"repository {options.repository}: serves no segmenter; export one, or leave --repository out"
        )
    before = machine()
    known = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    with prepared(options) as bench:
        result = known if options.soak_only else {"machine": before} | measured(bench, options)
        if options.soak:
            result["soak"] = soaked(bench, options.soak, options.soak_seconds)
        elif "soak" in known:
            result["soak"] = known["soak"]
    return result


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, help="default: one of the embedded backbone, in build/load")
    parser.add_argument("--segmenter", type=Path, help="what that one is made of; default: random embeddings")
    parser.add_argument("--maps", choices=["averaged", "weighted"], default="averaged", help="in which form")
    parser.add_argument("--segmenters", nargs="+", metavar="NAME", help="asked for by turns; the first is the floor's")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each run of a closed loop, and of the floor's")
    parser.add_argument("--open-seconds", type=float, default=10.0, help="of each run of an open loop")
    parser.add_argument("--soak", type=int, default=0, metavar="N", help="then N requests, memory sampled")
    parser.add_argument("--soak-seconds", type=float, default=3600.0, help="at the most")
    parser.add_argument("--soak-only", action="store_true", help="add the soak to the figures in --json")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--page", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
