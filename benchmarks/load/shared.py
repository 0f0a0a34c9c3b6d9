"""The shared form against the baked one, and two hundred segmenters of it at once.

    python -m benchmarks.load.shared --json docs/shared.json --page docs/shared.md

One server serves one segmenter in both forms: single requests by turns give the ratio of their latencies, and runs of
eight clients by turns that of their throughputs. Then segmenters with random embeddings are published while the server
runs, checked by it, each then asked by a client that looks it up; the server's memory before and after, throughput
over fifty of them beside one, and the UNet's batches when every request names another. Some baked ones are published
in the same way for comparison.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.common import command_line, keeping, machine, served_repository
from benchmarks.common.figures import Goal, interval, ratio, spread
from benchmarks.common.server import Launched, launched
from benchmarks.common.sides import BenchmarkError, Side, positive, reported, say, script, started
from benchmarks.load.figures import Runs, pairs, summary
from benchmarks.publishing.variants import UNCHECKED, Published, checked

from slime_client import Segmenter as Client
from slime_export.publish.server_control import Server
from slime_optimize.backbone import Backbone, load_backbone
from slime_optimize.segmenter import Segmenter
from slime_repository.variant import Variant

BAKED, SHARED = "car", "car-shared"
CLIENTS = 8
MIXED = 50
AGREEMENT = 0.99  # of a mask's pixels
CHUNK = 25  # pairs of one order
_MB = 1.048576  # in a MiB


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A server with both forms, the client, and what new segmenters are made of."""

    repository: Path
    server: Launched
    client: Side
    side: int
    segmenter: Segmenter
    backbone: Backbone
    variant: Variant

    def ask(self, names: Sequence[str], runs: Runs | None = None, **order: Any) -> dict[str, Any]:
        """Give one order to the client."""
        targets = [served_repository.target(self.repository, name) for name in names]
        return (runs or Runs()).ask(self.server, self.client, targets=targets, side=self.side, **order)

    def by_turns(self, kinds: Mapping[str, list[str]], rounds: int, seconds: float) -> dict[str, Runs]:
        """Let eight clients ask for each kind of names in each round, in an order that alternates."""
        found = {kind: Runs() for kind in kinds}
        for turn in range(rounds):
            for kind in list(kinds)[:: 1 if turn % 2 == 0 else -1]:
                self.ask(kinds[kind], found[kind], clients=CLIENTS, seconds=seconds)
        return found

    def another(self, seed: int) -> Segmenter:
        """Return a segmenter with random embeddings of its own."""
        generator = torch.Generator().manual_seed(seed)
        text = torch.randn(self.segmenter.text_embedding.shape, generator=generator)
        return replace(self.segmenter, text_embedding=text, seed=seed)

    def seconds_to_answer(self, published: Published, name: str) -> float:
        """Return the seconds from the start of a publication to the first mask of a client that looks the name up."""
        begun = time.perf_counter()
        published.publish(self.repository, name, Server(self.server.url))
        with Client(self.server.url, name) as client:
            mask_HW = np.asarray(client.segment(published.check.image).array)
        seconds = time.perf_counter() - begun
        if complaint := published.check.complaint(mask_HW):
            raise BenchmarkError(f"segmenter {name} {complaint}")
        return seconds


@contextmanager
def prepared(options: argparse.Namespace) -> Iterator[Bench]:
    """Export both forms, serve them and warm the server up."""
    original = options.work / f"repository-{options.maps}"
    for name, more in ((BAKED, ()), (SHARED, ("--embedding", "shared"))):
        served_repository.export(options.segmenter, original, name, "--maps", options.maps, *more)
    torch.set_num_threads(1)
    with ExitStack() as stack:
        repository = stack.enter_context(served_repository.copied(original))
        server = stack.enter_context(launched(repository))
        bench = Bench(
            repository=repository,
            server=server,
            client=stack.enter_context(started("client", "benchmarks.load.client", server.url)),
            side=served_repository.image_side(repository, BAKED),
            segmenter=Segmenter.load(options.segmenter or original.parent / "segmenter"),
            backbone=load_backbone(options.backbone),
            variant=Variant(maps=options.maps),
        )
        bench.client.ask()
        for clients in (CLIENTS, 1):
            for name in (BAKED, SHARED):
                bench.ask([name], clients=clients, seconds=options.seconds / 2)
        yield bench


def compared(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of the two forms of one segmenter, by turns."""
    found: list[tuple[float, ...]] = []
    for turn in range(0, options.pairs, CHUNK):
        found += pairs(bench.ask([BAKED, SHARED], pairs=min(CHUNK, options.pairs - turn), seed=turn))
    baked, shared = zip(*found, strict=True)
    runs = bench.by_turns({"baked": [BAKED], "shared": [SHARED]}, options.rounds, options.seconds)
    return {
        "latency_ms": {"baked": 1000 * float(np.median(baked)), "shared": 1000 * float(np.median(shared))},
        "latency_ratio": ratio(shared, baked),
        "throughput_ratio": ratio(runs["shared"].throughputs(), runs["baked"].throughputs()),
        "closed": {kind: each.summary() for kind, each in runs.items()},
    }


def many(bench: Bench, count: int, timed: int) -> tuple[list[str], dict[str, Any]]:
    """Publish `count` shared segmenters; return their names, and what it took.

    Those after the first `timed` go into the repository alone, unchecked; the running server sees them when they are
    first asked for.
    """
    bench.ask([SHARED], clients=CLIENTS, seconds=1e6, count=count)
    before, seconds, names = bench.server.memory(), [], [f"many-{turn:03}" for turn in range(count)]
    for turn, name in enumerate(names):
        segmenter, is_timed = bench.another(turn), turn < timed
        check = checked(segmenter, bench.backbone, turn, AGREEMENT) if is_timed else UNCHECKED
        published = Published(shared=True, segmenter=segmenter, check=check, variant=bench.variant)
        if is_timed:
            seconds.append(bench.seconds_to_answer(published, name))
        else:
            published.publish(bench.repository, name, None)
        if turn % 20 == 19:
            say(f"published {turn + 1} of {count}")
    answered = summary(bench.ask(names, clients=CLIENTS, seconds=1e6, count=count))
    after = bench.server.memory()
    sizes = [path.stat().st_size for path in (bench.repository / "segmenters").glob("store/many-*")]
    return names, {
        "count": count,
        "answered": answered["requests"] - answered["rejects"] - sum(answered["errors"].values()),
        "file_mb": max(sizes) / 1e6,
        "memory_mb_each": (sum(after.values()) - sum(before.values())) * _MB / count,
        "memory_mib": {name: {"before": before.get(name, 0.0), "after": value} for name, value in after.items()},
        "timed": len(seconds),
        "publish_to_answer_s": spread(seconds),
    }


def baked_ones(bench: Bench, count: int) -> dict[str, Any]:
    """Publish the baked network that is there under other names; what it weighs does not depend on its embedding."""
    before = bench.server.memory()
    check = checked(bench.segmenter, bench.backbone, 0, AGREEMENT)
    files = served_repository.networks(bench.repository, BAKED)
    published = Published(segmenter=bench.segmenter, check=check, networks=files, variant=bench.variant)
    seconds = [bench.seconds_to_answer(published, f"baked-{turn}") for turn in range(count)]
    grown = sum(bench.server.memory().values()) - sum(before.values())
    return {"count": count, "memory_mb_each": grown * _MB / count, "publish_to_answer_s": spread(seconds)}


def whole_command(bench: Bench, options: argparse.Namespace) -> dict[str, float]:
    """Return the seconds of export/build.py, from a segmenter's folder to the running server, in either form."""
    found = {}
    given = options.segmenter or options.work / "segmenter"
    for form, more in (("shared", ("--embedding", "shared")), ("baked", ())):
        words = ("--repository", bench.repository, "--name", f"whole-{form}", *more, "--maps", options.maps)
        begun = time.perf_counter()
        script("export/build.py", given, *words, "--url", bench.server.url)
        found[form] = time.perf_counter() - begun
    return found


def mixed(bench: Bench, names: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of eight clients on one segmenter, on fifty in turn, and on all of them in turn."""
    some = list(names[:MIXED])
    kinds = {"one": [SHARED], "mixed": some, "different": list(names)}
    runs = bench.by_turns(kinds, options.rounds, options.seconds)
    return {
        "names": {kind: len(of) for kind, of in kinds.items()},
        "closed": {kind: each.summary() for kind, each in runs.items()},
        "mixed_to_one": ratio(runs["mixed"].throughputs(), runs["one"].throughputs()),
        "unet_batch": runs["different"].unet_batch(),
    }


def goals(result: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return a row for each figure that was wanted: the figure, what was wanted, what was measured, the verdict."""
    many, mixed, latency = result["many"], result["mixed"], result["compared"]["latency_ratio"]
    publish = many["publish_to_answer_s"]
    rows = (
        ("latency shared / baked in, upper end of the 95 % interval", "≤", 1.05, latency["high"],
         f"{latency['high']:.3f} (ratio {latency['ratio']:.3f}, {latency['low']:.3f} to {latency['high']:.3f})"),
        (f"server memory of each of {many['count']} segmenters, MB", "≤", 0.5, many["memory_mb_each"],
         f"{many['memory_mb_each']:.3f}"),
        (f"throughput over {mixed['names']['mixed']} segmenters / over one", "≥", 0.95,
         mixed["mixed_to_one"]["ratio"], interval(mixed["mixed_to_one"])),
        ("mean batch of the UNet, 8 clients, every request another segmenter", "≥", 3.0, mixed["unet_batch"],
         f"{mixed['unet_batch']:.2f}"),
        ("publish to first answer, longest, s", "≤", 1.0, publish["max"],
         f"median {publish['median']:.2f}, longest {publish['max']:.2f}"),
    )  # fmt: skip
    return [
        Goal(label=label, relation=sign, wanted=bound).row(value, shown) for label, sign, bound, value, shown in rows
    ]


def page(result: Mapping[str, Any]) -> str:
    """Return the whole document."""
    return keeping.render("load/shared.md.j2", result=result, goals=goals(result))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return everything that the options ask for."""
    result: dict[str, Any] = {"machine": machine.facts(), "maps": options.maps}
    with prepared(options) as bench:
        say("both forms by turns")
        result["compared"] = compared(bench, options)
        names, result["many"] = many(bench, options.count, options.timed)
        say("mixed traffic")
        result["mixed"] = mixed(bench, names, options)
        say("baked ones")
        result["baked"] = baked_ones(bench, options.baked)
        if options.whole:
            result["whole_command_s"] = whole_command(bench, options)
    return result


@reported
def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 1 where it cannot be measured."""
    options = _arguments(argv)
    result = measure(options)
    print(keeping.table(("figure", "wanted", "measured", ""), goals(result)))
    keeping.keep(options, result, page)
    return 0


def _arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = command_line.parser(__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/load"), help="where exports are kept")
    served_repository.add_options(parser)
    parser.add_argument("--backbone", default="embedded", help="the segmenter's: embedded, or a folder")
    parser.add_argument("--pairs", type=positive, default=300, help="of single requests")
    parser.add_argument("--rounds", type=positive, default=6, help="of runs with eight clients")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each run")
    parser.add_argument("--count", type=positive, default=200, help="of shared segmenters published")
    parser.add_argument("--timed", type=positive, default=200, help="of these, checked and timed to their first answer")
    parser.add_argument("--baked", type=positive, default=3, help="of baked ones published")
    parser.add_argument("--no-whole", dest="whole", action="store_false", help="do not time export/build.py itself")
    keeping.add_options(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
