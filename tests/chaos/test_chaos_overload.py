"""More requests than can be served: some are answered, the others refused at once, none is left without a status."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from load import Outcome
from toy import build_repository
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from serving import Served, png, served

pytestmark = [pytest.mark.triton, pytest.mark.slow, pytest.mark.alone]
# Fewer than the encoder's queue takes, so that none is refused, nor one that comes later.
WAITING = 12
# GMAC that each batch of the encoder takes: a fraction of a second.
WORK = 16


PICTURE = png(np.random.default_rng(0).integers(0, 256, (400, 500, 3), np.uint8))


def flood(url: str, segmenter: str, count: int, deadline: float, picture: bytes = PICTURE) -> list[Outcome]:
    """``count`` requests at the same moment."""
    image = grpc.InferInput("IMAGE", [1], "BYTES")
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


def test_overload(tmp_path: Path) -> None:
    """An encoder that is dear, as real ones are: what its queue has no room for is refused."""
    with served(build_repository(tmp_path / "repository", work=WORK)) as server:
        outcomes = flood(server.grpc, "toy", 300, 60)
        assert {outcome.status for outcome in outcomes} == {"OK", "UNAVAILABLE"}
        assert flood(server.grpc, "toy", 1, 60)[0].status == "OK"


def test_pictures_that_take_longer_than_their_networks(toy_repository: Path) -> None:
    """Reading 12 megapixels takes longer than the toy's networks: what has no place is refused before it is read."""
    photo = png(np.tile(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8), (10, 10, 1)))
    with served(toy_repository) as server:
        outcomes = flood(server.grpc, "toy", 100, 60, photo)
    refused = [outcome.ended for outcome in outcomes if outcome.status == "UNAVAILABLE"]
    answered = [outcome.ended for outcome in outcomes if outcome.status == "OK"]
    assert len(refused) + len(answered) == 100 and len(refused) > 50
    assert max(refused) < max(answered)


def test_requests_that_were_given_up_are_dropped(tmp_path: Path) -> None:
    """A deadline that passes while requests wait: they end at it, and most of them cost no computing."""
    with served(build_repository(tmp_path / "repository", work=WORK)) as server:
        before = masks_made(server)
        outcomes = flood(server.grpc, "toy", WAITING, 0.2)
        assert {outcome.status for outcome in outcomes} == {"DEADLINE_EXCEEDED"}
        # One that comes later is answered (on a slow machine after a refusal or two, when it waited in the queue), so
        # those before it have been dropped or computed.
        end = time.monotonic() + 60
        while (later := flood(server.grpc, "toy", 1, 60)[0]).status != "OK":
            assert later.status == "UNAVAILABLE" and time.monotonic() < end, later.message
        # The batch that the encoder had already, the later one, and the launcher's own probes.
        assert masks_made(server) - before < WAITING


def masks_made(server: Served) -> int:
    with grpc.InferenceServerClient(server.grpc) as client:
        (statistics_,) = client.get_inference_statistics("was").model_stats
    return int(statistics_.inference_count)
