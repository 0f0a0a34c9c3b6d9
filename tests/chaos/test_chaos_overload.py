"""More requests than can be served: some are answered, the others refused at once, none is left without a status."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from load import Outcome
from onnx import helper, numpy_helper
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from processes import stubs_of
from serving import Served, png, served

pytestmark = [pytest.mark.triton, pytest.mark.slow]
# No more than the encoder's queue takes beside the batch under way, so that none is refused.
WAITING = 16


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


def test_overload(toy_repository: Path, tmp_path: Path) -> None:
    """An encoder that is dear, as real ones are: what its queue has no room for is refused."""
    repository = tmp_path / "repository"
    shutil.copytree(toy_repository, repository)
    encoder = repository / "vae_encoder" / "1" / "model.onnx"
    onnx.save(slowed(onnx.load(encoder)), encoder)
    with served(repository) as server:
        outcomes = flood(server.grpc, "toy", 300, 60)
        assert {outcome.status for outcome in outcomes} == {"OK", "UNAVAILABLE"}
        assert flood(server.grpc, "toy", 1, 60)[0].status == "OK"


def slowed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same answers, after a large product whose result counts nothing."""
    graph = model.graph
    side = 2500
    weights = {"large": np.full((side, side), 1e-4, np.float32), "nothing": np.zeros((), np.float32)}
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    graph.node[-1].output[0] = "quick"
    graph.node.extend(
        [
            helper.make_node("ReduceMean", ["PIXELS"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["large", "mean"], ["scaled"]),
            helper.make_node("MatMul", ["scaled", "large"], ["product"]),
            helper.make_node("ReduceMean", ["product"], ["result"], keepdims=0),
            helper.make_node("Mul", ["result", "nothing"], ["zero"]),
            helper.make_node("Add", ["quick", "zero"], ["LATENTS"]),
        ]
    )
    return model


def test_requests_that_were_given_up_are_dropped(toy_repository: Path) -> None:
    """A deadline that passes while requests wait: they end at it, and most of them cost no computing."""
    with served(toy_repository) as server:
        before = masks_made(server)
        (encoder,) = stubs_of(server.launcher.pid)["vae_encoder"]
        os.kill(encoder, signal.SIGSTOP)  # so that nothing is answered before the deadline
        try:
            outcomes = flood(server.grpc, "toy", WAITING, 1)
        finally:
            os.kill(encoder, signal.SIGCONT)
        assert {outcome.status for outcome in outcomes} == {"DEADLINE_EXCEEDED"}
        # One that comes later is answered, so those before it have been dropped or computed.
        assert flood(server.grpc, "toy", 1, 60)[0].status == "OK"
        # The batch that the encoder had already, the later one, and the launcher's own probes.
        assert masks_made(server) - before < WAITING


def masks_made(server: Served) -> int:
    with grpc.InferenceServerClient(server.grpc) as client:
        (statistics_,) = client.get_inference_statistics("was").model_stats
    return int(statistics_.inference_count)
