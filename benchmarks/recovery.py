"""kill -9 under load: seconds until all clients are answered again, and what they saw meanwhile.

    python -m benchmarks.recovery --repository build/load/repository --json docs/recovery.json --page docs/recovery.md

Clients ask in a closed loop, each with a deadline. Each process of the server is killed in turn, several times over; it
counts as recovered when every client has had a right mask of a request that it sent after the kill.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from benchmarks.load_server import MIB, SHARED_MEMORY, Launched, descendants, launched, process_name
from benchmarks.pictures import encoded
from benchmarks.sides import BenchmarkError, cpu, positive, write
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from benchmarks import load_repository
from slime_serve.leftovers import SETTLED_SECONDS
from slime_was.tensors import IMAGE, MASK

CLIENTS = 4
DEADLINE_S = 5.0
WANTED_S = 10.0
PATIENCE_S = 120.0
CALM_S = 2.0  # before each kill
SETTLED_S = SETTLED_SECONDS + 15.0  # until the launcher has given back what Triton keeps
SERVER = "tritonserver"

_ABOUT = """# After kill -9

Written by `python -m benchmarks.recovery`; do not edit. {clients} clients ask the embedded backbone's server in a
closed loop, each request with a deadline of {deadline:g} s and no second try. A process is killed; it counts as
recovered when every client has had the right mask of a request that it sent after the kill. {rounds} kills of each;
seconds.

| killed | recovered after, median | longest (≤ {wanted:g}) | requests that failed | longest request | wrong masks |
|---|---:|---:|---|---:|---:|
{rows}

/dev/shm as a whole, mapped files that have no name any more included: {shm_before:.1f} MiB before the first kill,
{shm_after:.1f} MiB after the last of {kills}, {settled:g} s later and under the same load. On {cpu}, {cores} cores.
"""


@dataclass
class Client:
    """Asks until told to stop. Times are of `time.monotonic`."""

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
    """The mask. A connection of its own: one that was refused waits before it tries again."""
    tensor = grpc.InferInput(IMAGE, [1], "BYTES")
    tensor.set_data_from_numpy(np.array([image], dtype=object))
    with grpc.InferenceServerClient(url) as client:
        answer = client.infer(model, [tensor], outputs=[grpc.InferRequestedOutput(MASK)], client_timeout=DEADLINE_S)
    return answer.as_numpy(MASK)


@contextmanager
def asking(server: Launched, model: str, image: bytes) -> Iterator[list[Client]]:
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
    """What came of killing the process of that name."""
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
    """One process of each name: models', and Triton's own."""
    found = {process_name(pid): pid for pid in descendants(server.pid)}
    parts = [name for name in found if name in (SERVER, *server.counts())]
    return {name: found[name] for name in parts}


def measure(repository: Path, name: str, rounds: int) -> dict[str, Any]:
    model, _ = load_repository.target(repository, name)
    image = encoded(load_repository.image_side(repository, name), 0)
    with launched(repository) as server:
        with asking(server, model, image):  # Processes keep their largest messages: the same load as afterwards.
            time.sleep(2 * CALM_S)
        names, before = list(processes(server)), _shared_mib()
        runs: dict[str, list[dict[str, Any]]] = {each: [] for each in names}
        for turn in range(rounds):
            for each in names:
                runs[each].append(killed(server, model, image, each))
                print(f"round {turn + 1} of {rounds}: {each} {runs[each][-1]['seconds']:.2f} s", flush=True)
        time.sleep(SETTLED_S)
        with asking(server, model, image):
            time.sleep(2 * CALM_S)
        after = _shared_mib()
    rows = {each: _row(of) for each, of in runs.items()}
    machine = {"cpu": cpu(), "cores": os.cpu_count()}
    return {"rows": rows, "rounds": rounds, "shm_mib": {"before": before, "after": after}, "machine": machine}


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


def page(result: dict[str, Any]) -> str:
    rows = []
    for name, row in result["rows"].items():
        failed = ", ".join(f"{count} {status}" for status, count in row["failed"].items()) or "none"
        rows.append(
            f"| {name} | {row['median_s']:.2f} | {row['longest_s']:.2f} | {failed} | {row['longest_request_s']:.2f} | "
            f"{row['wrong']} |"
        )
    return _ABOUT.format(
        clients=CLIENTS,
        deadline=DEADLINE_S,
        wanted=WANTED_S,
        rounds=result["rounds"],
        rows="\n".join(rows),
        kills=result["rounds"] * len(result["rows"]),
        settled=SETTLED_S,
        shm_before=result["shm_mib"]["before"],
        shm_after=result["shm_mib"]["after"],
        **result["machine"],
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--segmenter", default="car", help="what to ask for; random embeddings are exported if missing")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path)
    options = parser.parse_args(argv)
    try:
        load_repository.export(None, options.repository, options.segmenter)
        result = measure(options.repository, options.segmenter, options.rounds)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(page(result))
    if options.json:
        write(options.json, json.dumps(result, indent=1) + "\n")
    if options.page:
        write(options.page, page(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
