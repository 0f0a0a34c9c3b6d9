"""More requests than can be served: some are answered, the others refused at once, none is left without a status."""

from __future__ import annotations

import statistics
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from load import Outcome
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from serving import png, served

pytestmark = [pytest.mark.triton, pytest.mark.slow]


def flood(url: str, segmenter: str, count: int, deadline: float) -> list[Outcome]:
    """``count`` requests at the same moment."""
    image = grpc.InferInput("IMAGE", [1], "BYTES")
    picture = png(np.random.default_rng(0).integers(0, 256, (400, 500, 3), np.uint8))
    image.set_data_from_numpy(np.array([picture], dtype=object))
    outcomes: list[Outcome] = []
    all_done = threading.Semaphore(0)

    def keep(begun: float, result: Any, error: InferenceServerException | None) -> None:
        status = str(error.status()).removeprefix("StatusCode.") if error else "OK"
        message = str(error.message()) if error else ""
        outcomes.append(Outcome(status=status, message=message, begun=begun, seconds=time.monotonic() - begun))
        all_done.release()

    with grpc.InferenceServerClient(url) as client:
        for _ in range(count):
            begun = time.monotonic()
            client.async_infer(
                segmenter,
                [image],
                lambda result, error, begun=begun: keep(begun, result, error),
                outputs=[grpc.InferRequestedOutput("MASK")],
                client_timeout=deadline,
            )
        for _ in range(count):
            assert all_done.acquire(timeout=deadline + 5)
    return outcomes


def test_overload(toy_repository: Path) -> None:
    with served(toy_repository) as server:
        outcomes = flood(server.grpc, "toy", 500, 60)
        statuses = {outcome.status for outcome in outcomes}
        assert statuses == {"OK", "UNAVAILABLE"}
        refused = [outcome for outcome in outcomes if outcome.status == "UNAVAILABLE"]
        answered = [outcome for outcome in outcomes if outcome.status == "OK"]
        assert statistics.median(each.seconds for each in refused) < statistics.median(
            each.seconds for each in answered
        )
        assert flood(server.grpc, "toy", 1, 60)[0].status == "OK"


def test_requests_that_were_given_up_are_dropped(toy_repository: Path) -> None:
    """A deadline that passes while requests wait: they end at it, and most of them cost no computing."""
    with served(toy_repository) as server:
        outcomes = flood(server.grpc, "toy", 60, 0.05)
        given_up = sum(outcome.status == "DEADLINE_EXCEEDED" for outcome in outcomes)
        assert given_up
        with grpc.InferenceServerClient(server.grpc) as client:
            time.sleep(2)
            (statistics_,) = client.get_inference_statistics("was").model_stats
            assert statistics_.inference_count < 60
        assert flood(server.grpc, "toy", 1, 60)[0].status == "OK"
