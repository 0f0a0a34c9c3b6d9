"""Whether the server really serves: one small generated image through each segmenter.

Triton calls itself ready while the Python process behind a model is dead, so only an answer counts.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

import numpy as np
from PIL import Image
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from slime_serve.errors import ServerError
from slime_was import contract

SIZE = (48, 64)
_POLL_SECONDS = 0.1
Answer = Future[Any]


def wait(url: str, segmenters: Iterable[str], timeout: float, check_alive: Callable[[], None]) -> None:
    """Return once every segmenter has answered. ServerError: an error or a wrong answer, or ``timeout`` seconds.

    ``check_alive`` is called while waiting and raises where waiting has become pointless.
    """
    deadline = time.monotonic() + timeout
    with grpc.InferenceServerClient(url) as client:
        while not _ready(client):
            check_alive()
            if time.monotonic() > deadline:
                raise ServerError(f"server: not ready after {timeout:g} s; allow more with --timeout")
            time.sleep(_POLL_SECONDS)
        for segmenter in segmenters:
            answer = _ask(client, segmenter, max(1.0, deadline - time.monotonic()))
            while not answer.done():
                check_alive()
                time.sleep(_POLL_SECONDS)
            _check(segmenter, answer)


def _ready(client: grpc.InferenceServerClient) -> bool:
    try:
        return bool(client.is_server_ready(client_timeout=1))
    except InferenceServerException:
        return False


def _ask(client: grpc.InferenceServerClient, segmenter: str, timeout: float) -> Answer:
    """In the background, because the first answer of a large network takes its time."""
    image = grpc.InferInput(contract.IMAGE, [1], "BYTES")
    image.set_data_from_numpy(np.array([_picture()], dtype=object))
    wanted = [grpc.InferRequestedOutput(contract.MASK)]
    answer: Answer = Future()
    client.async_infer(
        segmenter,
        [image],
        lambda result, error: answer.set_exception(error) if error else answer.set_result(result),
        outputs=wanted,
        client_timeout=timeout,
    )
    return answer


def _check(segmenter: str, answer: Answer) -> None:
    try:
        mask_HW = answer.result().as_numpy(contract.MASK)
    except InferenceServerException as error:
        reason = " ".join(str(error.message()).split())
        raise ServerError(f"segmenter {segmenter}: the server cannot answer with it ({reason})") from error
    if mask_HW is None or mask_HW.shape != SIZE:
        got = None if mask_HW is None else mask_HW.shape
        raise ServerError(f"segmenter {segmenter}: got a mask of shape {got}, expected {SIZE}; export it again")


def _picture() -> bytes:
    gradient = np.linspace(0, 255, SIZE[0] * SIZE[1] * 3).reshape(*SIZE, 3).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(gradient).save(buffer, "PNG")
    return buffer.getvalue()
