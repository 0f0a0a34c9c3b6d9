"""Whether the server really serves: one small generated image through each segmenter.

Triton calls itself ready while the Python process behind a model is dead, so only an answer counts.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image
from slime_was import contract
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from slime_serve.errors import ServerFailed

SIZE = (48, 64)
_POLL_SECONDS = 0.1


def wait(url: str, segmenters: Iterable[str], timeout: float, check_alive: Callable[[], None]) -> None:
    """Return once every segmenter has answered. ServerFailed: an error or a wrong answer, or ``timeout`` seconds.

    ``check_alive`` is called while waiting and raises where waiting has become pointless.
    """
    deadline = time.monotonic() + timeout
    with grpc.InferenceServerClient(url) as client:
        while not _ready(client):
            check_alive()
            if time.monotonic() > deadline:
                raise ServerFailed(f"server: not ready after {timeout:g} s; allow more with --timeout")
            time.sleep(_POLL_SECONDS)
        for segmenter in segmenters:
            _ask(client, segmenter, max(1.0, deadline - time.monotonic()))


def _ready(client: grpc.InferenceServerClient) -> bool:
    try:
        return bool(client.is_server_ready(client_timeout=5))
    except InferenceServerException:
        return False


def _ask(client: grpc.InferenceServerClient, segmenter: str, timeout: float) -> None:
    image = grpc.InferInput(contract.IMAGE, [1], "BYTES")
    image.set_data_from_numpy(np.array([_picture()], dtype=object))
    wanted = [grpc.InferRequestedOutput(contract.MASK)]
    try:
        mask_HW = client.infer(segmenter, [image], outputs=wanted, client_timeout=timeout).as_numpy(contract.MASK)
    except InferenceServerException as error:
        reason = " ".join(str(error.message()).split())
        raise ServerFailed(f"segmenter {segmenter}: the server cannot answer with it ({reason})") from error
    if mask_HW is None or mask_HW.shape != SIZE:
        got = None if mask_HW is None else mask_HW.shape
        raise ServerFailed(f"segmenter {segmenter}: got a mask of shape {got}, expected {SIZE}; export it again")


def _picture() -> bytes:
    gradient = np.linspace(0, 255, SIZE[0] * SIZE[1] * 3).reshape(*SIZE, 3).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(gradient).save(buffer, "PNG")
    return buffer.getvalue()
