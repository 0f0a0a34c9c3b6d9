"""The shared form against the baked one, and two hundred segmenters of it at once.

    python -m benchmarks.shared --json docs/shared.json --page docs/shared.md

One server serves one segmenter in both forms: single requests by turns give the ratio of their latencies, and runs of
eight clients by turns that of their throughputs. Then segmenters with random embeddings are published while the server
runs, checked by it, each then asked by a client that looks it up; the server's memory before and after, throughput
over fifty of them beside one, and the UNet's batches when every request names another. Some baked ones are published
in the same way for comparison.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.load import Runs, machine, say, unet_batch
from benchmarks.load_server import Launched, launched
from benchmarks.pictures import picture
from benchmarks.sides import ROOT, BenchmarkError, Side, positive, started, write

from benchmarks import load_figures, load_repository, shared_page
from slime_client import Segmenter as Client
from slime_export.publish.changes import linked
from slime_export.publish.lock import staging
from slime_export.publish.publication import Candidate, publish
from slime_export.publish.record import Check, Mask, png
from slime_export.publish.server_control import Server
from slime_export.publish.shared_publication import SharedCandidate, publish_shared
from slime_optimize.backbone import Backbone, load_backbone
from slime_optimize.method.predict import Predictor
from slime_optimize.segmenter import Segmenter
from slime_repository.variant import Variant

BAKED, SHARED = "car", "car-shared"
CLIENTS = 8
MIXED = 50
AGREEMENT = 0.99  # of a mask's pixels
CHUNK = 25  # pairs of one order
_UNCHECKED = Check(image=b"", mask_HW=np.zeros((1, 1), np.uint8), agreement=0.0, training_image=False)


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

    def target(self, name: str) -> load_repository.Target:
        return load_repository.target(self.repository, name)

    def ask(self, names: Sequence[str], runs: Runs | None = None, **order: Any) -> dict[str, Any]:
        """One order of the client."""
        runs = runs or Runs()
        order = {"targets": [self.target(name) for name in names], "side": self.side, **order}
        with runs.watched(self.server):
            answer = self.client.ask(json.dumps(order))
        runs.answers.append(answer)
        return answer


@contextmanager
def prepared(options: argparse.Namespace) -> Iterator[Bench]:
    """Both forms exported, served and warm."""
    original = options.work / f"repository-{options.maps}"
    for name, more in ((BAKED, ()), (SHARED, ("--embedding", "shared"))):
        load_repository.export(options.segmenter, original, name, "--maps", options.maps, *more)
    torch.set_num_threads(1)
    with ExitStack() as stack:
        repository = stack.enter_context(load_repository.copied(original))
        server = stack.enter_context(launched(repository))
        bench = Bench(
            repository=repository,
            server=server,
            client=stack.enter_context(started("client", "benchmarks.load_client", server.url)),
            side=load_repository.image_side(repository, BAKED),
            segmenter=Segmenter.load(options.segmenter or original.parent / "segmenter"),
            backbone=load_backbone("embedded"),
            variant=Variant(maps=options.maps),
        )
        for clients in (CLIENTS, 1):
            bench.ask([BAKED], clients=clients, seconds=options.seconds / 2)
            bench.ask([SHARED], clients=clients, seconds=options.seconds / 2)
        yield bench


def compared(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    """The two forms of one segmenter by turns."""
    pairs: list[tuple[float, ...]] = []
    for turn in range(0, options.pairs, CHUNK):
        order = {"pairs": min(CHUNK, options.pairs - turn), "seed": turn}
        pairs += load_figures.pairs(bench.ask([BAKED, SHARED], **order))
    baked, shared = zip(*pairs, strict=True)
    rates = by_turns(bench, {"baked": [BAKED], "shared": [SHARED]}, options)
    return {
        "latency_ms": {"baked": 1000 * float(np.median(baked)), "shared": 1000 * float(np.median(shared))},
        "latency_ratio": load_figures.ratio(shared, baked),
        "throughput_ratio": load_figures.ratio(rates["shared"].throughputs(), rates["baked"].throughputs()),
        "closed": {kind: runs.summary() for kind, runs in rates.items()},
    }


def by_turns(bench: Bench, kinds: Mapping[str, list[str]], options: argparse.Namespace) -> dict[str, Runs]:
    """Eight clients on each kind of traffic in each round, the first of them changing."""
    found = {kind: Runs() for kind in kinds}
    for turn in range(options.rounds):
        order = list(kinds)[:: 1 if turn % 2 == 0 else -1]
        for kind in order:
            bench.ask(kinds[kind], found[kind], clients=CLIENTS, seconds=options.seconds)
    return found


def another(bench: Bench, seed: int) -> tuple[Segmenter, Check]:
    """With embeddings of its own, and what PyTorch answers with them."""
    chance = torch.Generator().manual_seed(seed)
    text = torch.randn(bench.segmenter.text_embedding.shape, generator=chance)
    segmenter = replace(bench.segmenter, text_embedding=text, seed=seed)
    image_HW3 = picture(bench.side, seed)
    mask_HW: Mask = np.asarray(Predictor(segmenter, bench.backbone).mask(image_HW3), np.uint8)
    return segmenter, Check(image=png(image_HW3), mask_HW=mask_HW, agreement=AGREEMENT, training_image=False)


def published_unseen(bench: Bench, name: str, seed: int) -> None:
    """Into the repository alone; the running server sees the file when it is first asked for it."""
    chance = torch.Generator().manual_seed(seed)
    text = torch.randn(bench.segmenter.text_embedding.shape, generator=chance)
    segmenter = replace(bench.segmenter, text_embedding=text, seed=seed)
    published_shared(bench, name, segmenter, _UNCHECKED, checked=False)


def published_shared(bench: Bench, name: str, segmenter: Segmenter, check: Check, checked: bool = True) -> None:
    server = Server(bench.server.url) if checked else None
    with staging(bench.repository, say=_quiet) as staged:
        candidate = SharedCandidate(
            name=name, segmenter=segmenter, variant=bench.variant, check=check, unet=None, encoder=None
        )
        publish_shared(bench.repository, staged, candidate, server, say=_quiet)


def published_baked(bench: Bench, name: str, segmenter: Segmenter, check: Check) -> None:
    """The network that is there under another name: what it weighs and takes does not hang on its embedding."""
    files = load_repository.networks(bench.repository, BAKED)
    with staging(bench.repository, say=_quiet) as staged:
        candidate = Candidate(
            name=name,
            segmenter=segmenter,
            unet=linked(files.unet.parent, staged / ".export" / "unet"),
            encoder=linked(files.encoder.parent, staged / ".export" / "encoder"),
            check=check,
            variant=bench.variant,
        )
        publish(bench.repository, staged, candidate, Server(bench.server.url), say=_quiet)


def to_first_answer(bench: Bench, name: str, check: Check, change: Callable[[], None]) -> float:
    """Seconds from the start of the publication to the first mask of a client that looks the name up."""
    begun = time.perf_counter()
    change()
    with Client(bench.server.url, name) as client:
        mask_HW = np.asarray(client.segment(check.image).array)
    seconds = time.perf_counter() - begun
    check.require(mask_HW, f"segmenter {name}")
    return seconds


def many(bench: Bench, count: int, timed: int) -> tuple[list[str], dict[str, Any]]:
    """Publishes so many, shared; their names, and what it took. Those after the first `timed` are not checked."""
    bench.ask([SHARED], clients=CLIENTS, seconds=1e6, count=count)
    before, seconds, names = bench.server.memory(), [], [f"many-{turn:03}" for turn in range(count)]
    for turn, name in enumerate(names):
        if turn < timed:
            segmenter, check = another(bench, turn)
            change = lambda name=name, it=segmenter, check=check: published_shared(bench, name, it, check)  # noqa: E731
            seconds.append(to_first_answer(bench, name, check, change))
        else:
            published_unseen(bench, name, turn)
        if turn % 20 == 19:
            say(f"published {turn + 1} of {count}")
    answered = load_figures.summary(bench.ask(names, clients=CLIENTS, seconds=1e6, count=count))
    after = bench.server.memory()
    sizes = [path.stat().st_size for path in (bench.repository / "segmenters").glob("store/many-*")]
    return names, {
        "count": count,
        "answered": answered["requests"] - answered["rejects"] - sum(answered["errors"].values()),
        "file_mb": max(sizes) / 1e6,
        "memory_mb_each": (sum(after.values()) - sum(before.values())) * 1.048576 / count,
        "memory_mib": {name: {"before": before.get(name, 0.0), "after": value} for name, value in after.items()},
        "timed": len(seconds),
        "publish_to_answer_s": _spread(seconds),
    }


def baked_ones(bench: Bench, count: int) -> dict[str, Any]:
    before, seconds = bench.server.memory(), []
    segmenter = bench.segmenter
    image_HW3 = picture(bench.side, 0)
    mask_HW: Mask = np.asarray(Predictor(segmenter, bench.backbone).mask(image_HW3), np.uint8)
    check = Check(image=png(image_HW3), mask_HW=mask_HW, agreement=AGREEMENT, training_image=False)
    for turn in range(count):
        name = f"baked-{turn}"
        change = lambda name=name: published_baked(bench, name, segmenter, check)  # noqa: E731
        seconds.append(to_first_answer(bench, name, check, change))
    grown = sum(bench.server.memory().values()) - sum(before.values())
    return {"count": count, "memory_mb_each": grown * 1.048576 / count, "publish_to_answer_s": _spread(seconds)}


def whole_command(bench: Bench, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of export/build.py, from a segmenter's folder to the running server, in either form."""
    found = {}
    given = options.segmenter or options.work / "segmenter"
    for variant, more in (("shared", ("--embedding", "shared")), ("baked", ())):
        words = [str(given), "--repository", str(bench.repository), "--name", f"whole-{variant}", *more]
        words += ["--maps", options.maps, "--url", bench.server.url]
        begun = time.perf_counter()
        done = subprocess.run([sys.executable, str(ROOT / "export/build.py"), *words], stdout=subprocess.DEVNULL)
        if done.returncode:
            raise BenchmarkError(f"export/build.py {' '.join(words)}: failed; its words are above")
        found[variant] = time.perf_counter() - begun
    return found


def mixed(bench: Bench, names: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Eight clients on one segmenter, on fifty in turn, and on all of them in turn."""
    some = list(names[:MIXED])
    runs = by_turns(bench, {"one": [SHARED], "mixed": some, "different": list(names)}, options)
    return {
        "names": {"one": 1, "mixed": len(some), "different": len(names)},
        "closed": {kind: each.summary() for kind, each in runs.items()},
        "mixed_to_one": load_figures.ratio(runs["mixed"].throughputs(), runs["one"].throughputs()),
        "unet_batch": unet_batch(runs["different"].models()),
    }


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    median, high = np.percentile(seconds, [50, 95])
    return {"median": float(median), "p95": float(high), "max": float(max(seconds))}


def _quiet(line: str) -> None:
    pass


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
    print(shared_page.goals(result))
    if options.page:
        write(options.page, shared_page.markdown(result))
    return 0


def _result(options: argparse.Namespace) -> dict[str, Any]:
    result: dict[str, Any] = {"machine": machine(), "maps": options.maps}
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


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/load"), help="where exports are kept")
    parser.add_argument("--segmenter", type=Path, help="what is exported; default: random embeddings")
    parser.add_argument("--maps", choices=["averaged", "weighted"], default="averaged", help="of both forms")
    parser.add_argument("--pairs", type=positive, default=300, help="of single requests")
    parser.add_argument("--rounds", type=positive, default=6, help="of runs with eight clients")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each run")
    parser.add_argument("--count", type=positive, default=200, help="of shared segmenters published")
    parser.add_argument("--timed", type=positive, default=200, help="of these, checked and timed to their first answer")
    parser.add_argument("--baked", type=positive, default=3, help="of baked ones published")
    parser.add_argument("--no-whole", dest="whole", action="store_false", help="do not time export/build.py itself")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--page", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
