"""Servers behind one client: do their throughputs add up?

    python -m benchmarks.load.spread --repository build/load/repository --json docs/spread.json

One server on each core, with one thread for each network. Each is asked alone by a client in a closed loop, then all
are asked at once by one client that spreads its requests over them; these turns alternate. The client shares the cores.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import command_line, keeping, machine, served_repository
from benchmarks.common.pictures import encoded
from benchmarks.common.server import Launched, launched
from benchmarks.common.sides import positive, reported

from slime_client import aio

CLIENTS = 4  # for each server: as many as it takes for all the masks that it can give
WARM_UP_S = 2.0
WANTED = 0.9


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Start processes on this core alone, in the block."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


async def throughput(servers: Sequence[Launched], name: str, image: bytes, seconds: float) -> tuple[float, float]:
    """Return the masks a second of clients in a closed loop, and the CPU ms of a mask, the clients' included."""
    done = 0

    async def client(segmenter: aio.Segmenter, until: float) -> None:
        nonlocal done
        while time.perf_counter() < until:
            await segmenter.segment(image)
            done += 1

    def used() -> float:
        return time.process_time() + sum(each.cpu_seconds() for each in servers)

    async with aio.Segmenter(f"ipv4:{','.join(each.url for each in servers)}", name, shared_memory=False) as segmenter:
        for each in (WARM_UP_S, seconds):
            done, cpu, begun = 0, used(), time.perf_counter()
            await asyncio.gather(*(client(segmenter, begun + each) for _ in range(CLIENTS * len(servers))))
    return done / (time.perf_counter() - begun), 1000 * (used() - cpu) / done


def measure(repository: Path, name: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Return masks a second of each server alone and of all of them, in each round."""
    image, facts = encoded(served_repository.image_side(repository, name), 0), machine.facts()
    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        servers: list[Launched] = []
        for core in cores:
            with pinned(core):
                servers.append(stack.enter_context(launched(repository, "--threads", "1", "--probe", "3600")))
        alone: list[list[tuple[float, float]]] = []
        together: list[tuple[float, float]] = []
        for turn in range(rounds):
            alone.append([asyncio.run(throughput([each], name, image, seconds)) for each in servers])
            together.append(asyncio.run(throughput(servers, name, image, seconds)))
            print(f"round {turn + 1} of {rounds}: {together[-1][0]:.1f} masks a second together", flush=True)
    pairs = list(zip(alone, together, strict=True))
    return {
        "alone": alone,
        "together": together,
        "ratio": median(both[0] / sum(rate for rate, _ in each) for each, both in pairs),
        "cpu_ratio": median(sum(cpu for _, cpu in each) / len(each) / both[1] for each, both in pairs),
        "machine": facts,
    }


def page(result: Mapping[str, Any]) -> str:
    """Return the whole document."""
    return keeping.render("load/spread.md.j2", result=result, clients=CLIENTS, wanted=WANTED)


@reported
def main(argv: Sequence[str] | None = None) -> int:
    parser = command_line.parser(__doc__)
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--segmenter", default="car", help="what to ask for; random embeddings are exported if missing")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    keeping.add_options(parser)
    options = parser.parse_args(argv)
    served_repository.export(None, options.repository, options.segmenter)
    result = measure(options.repository, options.segmenter, options.rounds, options.seconds)
    print(page(result))
    keeping.keep(options, result, page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
