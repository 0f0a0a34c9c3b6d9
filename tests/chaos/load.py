"""A load of single requests on a served segmenter, every outcome kept: what came back, when, and how long it took.

with load(server.grpc, "toy") as outcomes:
    …something goes wrong…
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from serving import png

DEADLINE_S = 5.0
# gRPC's own timer comes a little late on a machine that is busy.
GRACE_S = 2.0
PICTURE = png(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """``status``: OK or gRPC's name of what went wrong. ``begun``: of `time.monotonic`."""

    status: str
    message: str
    begun: float
    seconds: float
    mask: npt.NDArray[np.uint8] | None = field(default=None, repr=False)

    @property
    def ended(self) -> float:
        return self.begun + self.seconds


@contextmanager
def load(url: str, segmenter: str, clients: int = 4) -> Iterator[list[Outcome]]:
    """The list grows while the block runs, and is whole after it."""
    outcomes: list[Outcome] = []
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            outcomes.append(ask(url, segmenter, PICTURE))
            if outcomes[-1].status != "OK":
                time.sleep(0.02)

    threads = [threading.Thread(target=run) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield outcomes
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def ask(url: str, segmenter: str, image: bytes, deadline: float = DEADLINE_S) -> Outcome:
    begun = time.monotonic()
    try:
        # A connection of its own: one that was refused waits before it tries again.
        with grpc.InferenceServerClient(url) as client:
            tensor = grpc.InferInput("IMAGE", [1], "BYTES")
            tensor.set_data_from_numpy(np.array([image], dtype=object))
            wanted = [grpc.InferRequestedOutput("MASK")]
            mask = client.infer(segmenter, [tensor], outputs=wanted, client_timeout=deadline).as_numpy("MASK")
        status, message = "OK", ""
    except InferenceServerException as error:
        status, message, mask = str(error.status()).removeprefix("StatusCode."), str(error.message()), None
    return Outcome(status=status, message=message, begun=begun, seconds=time.monotonic() - begun, mask=mask)


def wait_until_ok(outcomes: list[Outcome], since: float, timeout: float) -> float:
    """Seconds from ``since`` until the first request begun after it was answered with a mask."""
    while time.monotonic() < since + timeout:
        for outcome in list(outcomes):
            if outcome.begun > since and outcome.status == "OK":
                return outcome.ended - since
        time.sleep(0.05)
    raise AssertionError(f"no mask within {timeout:g} s; last: {outcomes[-3:]}")
