"""kill -9 under load: seconds until all clients are answered again, and what they saw meanwhile.

    python -m benchmarks.load.recovery --repository build/load/repository --json docs/recovery.json

Clients ask in a closed loop, each with a deadline. Each process of the server is killed in turn, several times over; it
counts as recovered when every client has had a right mask of a request that it sent after the kill.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from benchmarks.common import command_line, keeping, machine, served_repository
from benchmarks.common.pictures import encoded
from benchmarks.common.server import MIB, SHARED_MEMORY, Launched, descendants, launched, process_name
from benchmarks.common.sides import BenchmarkError, positive, reported
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from slime_serve.old_triton import SETTLED_SECONDS
from slime_was.tensors import IMAGE, MASK

CLIENTS = 4
DEADLINE_S = 5.0
WANTED_S = 10.0
PATIENCE_S = 120.0
CALM_S = 2.0  # before each kill
SETTLED_S = SETTLED_SECONDS + 15.0  # until the launcher has given back what Triton keeps
# A server that lasted less than a minute is started again with a pause, which grows.
LASTED_S = 65.0
SERVER = "tritonserver"


@dataclass
class Client:
    """A client that asks until it is told to stop. Times are of `time.monotonic`."""

    url: str
    model: str
    image: bytes
    expected: Any
    stop: threading.Event
    right: list[float] = field(default_factory=list)  # when requests with right masks were sent
    failed: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    longest: float = 0.0

    def run(self) -> None:
        while not self.stop.is_set():
            sent = time.monotonic()
            try:
                same = np.array_equal(ask(self.url, self.model, self.image), self.expected)
            except InferenceServerException as error:
                self.failed[str(error.status()).removeprefix("StatusCode.")] += 1
                time.sleep(0.02)
            else:
                self.wrong += not same
                self.right += [sent] * same
            self.longest = max(self.longest, time.monotonic() - sent)


def ask(url: str, model: str, image: bytes) -> Any:
    """Return the mask, over a connection of its own: one that was refused waits before it tries again."""
    tensor = grpc.InferInput(IMAGE, [1], "BYTES")
    tensor.set_data_from_numpy(np.array([image], dtype=object))
    with grpc.InferenceServerClient(url) as client:
        answer = client.infer(model, [tensor], outputs=[grpc.InferRequestedOutput(MASK)], client_timeout=DEADLINE_S)
    return answer.as_numpy(MASK)


@contextmanager
def asking(server: Launched, model: str, image: bytes) -> Iterator[list[Client]]:
    """Let clients ask in threads for as long as the block lasts."""
    expected, stop = ask(server.url, model, image), threading.Event()
    clients = [Client(server.url, model, image, expected, stop) for _ in range(CLIENTS)]
    threads = [threading.Thread(target=each.run) for each in clients]
    for thread in threads:
        thread.start()
    try:
        yield clients
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def killed(server: Launched, model: str, image: bytes, name: str) -> dict[str, Any]:
    """Kill the process of that name; return what came of it."""
    pid = processes(server)[name]
    with asking(server, model, image) as clients:
        time.sleep(CALM_S)
        begun = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        while not all(any(sent > begun for sent in each.right) for each in clients):
            if time.monotonic() - begun > PATIENCE_S:
                raise BenchmarkError(f"{name}: not every client was answered within {PATIENCE_S:g} s of its kill")
            time.sleep(0.01)
        seconds = time.monotonic() - begun
    failed: Counter[str] = sum((each.failed for each in clients), Counter())
    longest, wrong = max(each.longest for each in clients), sum(each.wrong for each in clients)
    return {"seconds": seconds, "failed": failed, "longest": longest, "wrong": wrong}


def processes(server: Launched) -> dict[str, int]:
    """Return one process of each name: models', and Triton's own."""
    found = {process_name(pid): pid for pid in descendants(server.pid)}
    parts = (SERVER, *server.counts())
    return {name: pid for name, pid in found.items() if name in parts}


def measure(repository: Path, name: str, rounds: int) -> dict[str, Any]:
    """Return the figures of `rounds` kills of each process."""
    model, _ = served_repository.target(repository, name)
    image, facts = encoded(served_repository.image_side(repository, name), 0), machine.facts()
    with launched(repository) as server:
        with asking(server, model, image):  # processes keep their largest messages: the same load as afterwards
            time.sleep(2 * CALM_S)
        names, before = list(processes(server)), _shared_mib()
        runs: dict[str, list[dict[str, Any]]] = {each: [] for each in names}
        for turn in range(rounds):
            for each in names:
                first = processes(server)[SERVER]
                runs[each].append(killed(server, model, image, each))
                print(f"round {turn + 1} of {rounds}: {each} {runs[each][-1]['seconds']:.2f} s", flush=True)
                if processes(server)[SERVER] != first:
                    time.sleep(LASTED_S)
        time.sleep(SETTLED_S)
        with asking(server, model, image):
            time.sleep(2 * CALM_S)
        after = _shared_mib()
    rows = {each: _row(of) for each, of in runs.items()}
    return {"rows": rows, "rounds": rounds, "shm_mib": {"before": before, "after": after}, "machine": facts}


def _shared_mib() -> float:
    return shutil.disk_usage(SHARED_MEMORY).used / MIB


def _row(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    seconds = [each["seconds"] for each in runs]
    return {
        "median_s": round(median(seconds), 2),
        "longest_s": round(max(seconds), 2),
        "failed": dict(sum((each["failed"] for each in runs), Counter())),
        "longest_request_s": round(max(each["longest"] for each in runs), 2),
        "wrong": sum(each["wrong"] for each in runs),
    }


def page(result: Mapping[str, Any]) -> str:
    """Return the whole document."""
    about = {"clients": CLIENTS, "deadline_s": DEADLINE_S, "wanted_s": WANTED_S}
    about |= {"settled_s": SETTLED_S, "lasted_s": LASTED_S}
    return keeping.render("load/recovery.md.j2", result=result, **about)


@reported
def main(argv: Sequence[str] | None = None) -> int:
    parser = command_line.parser(__doc__)
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--segmenter", default="car", help="what to ask for; random embeddings are exported if missing")
    parser.add_argument("--rounds", type=positive, default=3)
    keeping.add_options(parser)
    options = parser.parse_args(argv)
    served_repository.export(None, options.repository, options.segmenter)
    result = measure(options.repository, options.segmenter, options.rounds)
    print(page(result))
    keeping.keep(options, result, page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
