"""The client of the load benchmarks, a process of its own that sends prepared requests and notes what came of each.

    python -m benchmarks.load.client HOST:PORT

After a first, empty line, each order, a line of JSON, is answered by one (`asked` has the outcomes):

    {"targets": [["car", null]], "side": 128, "clients": 4, "seconds": 5}      closed loop: each client asks on and on
    {"targets": …, "side": 128, "rate": 80, "seconds": 5, "seed": 0}           open loop: Poisson, whatever comes back
    {"targets": …, "side": 128, "overlaps": 500, "within": 0.05}               two at a time, then none for a moment
    {"targets": [["car", null], ["shared_0", "car"]], "side": 128, "pairs": 9} one after the other, in changing order

A target is a model and, in the shared form, the segmenter to name. `count` ends a closed loop early, `deadline` (s) is
each request's. An outcome: [status, target, seconds from when it was due, seconds from when it was sent]. In an open
loop a request is due when the Poisson process says so, so what waits behind a slow client or server counts as slow.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import grpc
import numpy as np
from benchmarks.common import command_line
from benchmarks.common.pictures import encoded
from benchmarks.common.sides import work
from benchmarks.load.figures import OK
from tritonclient.grpc import service_pb2_grpc

from slime_client.protocol import infer

PICTURES = 8  # of different content, asked for in turn
DEADLINE_S = 30.0
_OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
Order = Mapping[str, Any]
Outcome = tuple[str, int, float, float]


class Asking:
    """A connection, the requests of an order, and the outcomes so far."""

    def __init__(self, stub: Any, order: Order) -> None:
        self._stub, self._deadline = stub, float(order.get("deadline", DEADLINE_S))
        self.targets = [(model, segmenter) for model, segmenter in order["targets"]]
        self._side = int(order["side"])
        self._turn = 0
        self.outcomes: list[Outcome] = []

    async def next(self, due: float | None = None) -> None:
        """Ask for the next target in turn."""
        turn, self._turn = self._turn, self._turn + 1
        await self.one(turn % len(self.targets), turn, due)

    async def one(self, target: int, picture: int, due: float | None = None) -> None:
        request = _request(*self.targets[target], self._side, picture % PICTURES)
        sent = time.perf_counter()
        try:
            answer = await self._stub.ModelInfer(request, timeout=self._deadline)
            mask_HW = np.frombuffer(answer.raw_output_contents[0], np.uint8).reshape(answer.outputs[0].shape)
            status = OK if mask_HW.ndim == 2 else "WRONG"
        except grpc.aio.AioRpcError as error:
            status = error.code().name
        ended = time.perf_counter()
        self.outcomes.append((status, target, ended - (sent if due is None else due), ended - sent))


@lru_cache(maxsize=4096)
def _request(model: str, segmenter: str | None, side: int, seed: int) -> Any:
    given: dict[str, bytes | None] = {"IMAGE": encoded(side, seed)}
    return infer(model, given | ({"SEGMENTER": segmenter.encode()} if segmenter else {}), ["MASK"])


async def closed(asking: Asking, order: Order) -> None:
    """Let `clients` ask, each of which waits for its answer before it asks again."""
    until, left = time.perf_counter() + order["seconds"], int(order.get("count", sys.maxsize))

    async def client() -> None:
        nonlocal left
        while left > 0 and time.perf_counter() < until:
            left -= 1
            await asking.next()

    await asyncio.gather(*(client() for _ in range(order["clients"])))


async def opened(asking: Asking, order: Order) -> None:
    """Ask at the moments of a Poisson process of this rate; wait for the requests under way at its end."""
    chance = np.random.default_rng(order.get("seed", 0))
    begun, moment, tasks = time.perf_counter(), 0.0, []
    while (moment := moment + float(chance.exponential(1 / order["rate"]))) < order["seconds"]:
        await asyncio.sleep(max(0.0, begun + moment - time.perf_counter()))
        tasks.append(asyncio.create_task(asking.next(begun + moment)))
    await asyncio.gather(*tasks)


async def overlapped(asking: Asking, order: Order) -> None:
    """Ask twice, the second time up to `within` seconds later, wait for both answers, and begin anew."""
    chance = np.random.default_rng(order.get("seed", 0))

    async def later(seconds: float) -> None:
        await asyncio.sleep(seconds)
        await asking.next()

    for _ in range(order["overlaps"]):
        await asyncio.gather(asking.next(), later(float(chance.uniform(0, order["within"]))))


async def paired(asking: Asking, order: Order) -> None:
    """Ask every target once in each round, in a random order, with the same picture for all of them."""
    chance = np.random.default_rng(order.get("seed", 0))
    for turn in range(order["pairs"]):
        for target in chance.permutation(len(asking.targets)):
            await asking.one(int(target), turn)


async def obey(url: str, order: Order) -> dict[str, Any]:
    kinds = {"clients": closed, "rate": opened, "overlaps": overlapped, "pairs": paired}
    kind = next(kind for key, kind in kinds.items() if key in order)
    async with grpc.aio.insecure_channel(url, _OPTIONS) as channel:
        asking = Asking(service_pb2_grpc.GRPCInferenceServiceStub(channel), order)
        await channel.channel_ready()
        begun, used = time.perf_counter(), time.process_time()
        await kind(asking, order)
        return {
            "seconds": time.perf_counter() - begun,
            "client_cpu": time.process_time() - used,
            "asked": asking.outcomes,
        }


def main(words: Sequence[str] | None = None) -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("url", metavar="HOST:PORT")
    url = parser.parse_args(words).url
    work({}, lambda order: asyncio.run(obey(url, order)), dict)


if __name__ == "__main__":
    main()
