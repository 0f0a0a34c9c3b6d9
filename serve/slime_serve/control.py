"""What the launcher itself says to the server: load this, answer that. Over HTTP, which stays on the loopback
address whatever gRPC listens on, so that neither certificates nor names matter here."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from tritonclient import http
from tritonclient.utils import InferenceServerException

from slime_repository import contract
from slime_serve.errors import ServeError
from slime_serve.repository import Served
from slime_serve.security import HEADER
from slime_was import tensors
from slime_was.tensors import SEGMENTER

# A network of several gigabytes takes its time.
LOAD_SECONDS = 600.0
_SHORT_SECONDS = 2.0
Answer = TypeVar("Answer")


class UnansweredError(ServeError):
    """The server refused, failed, or was not there; the message is its reason, in one line."""


class Control:
    """Requests to the server at ``address`` (HOST:PORT of its HTTP endpoint). Usable from any thread.

    Every method raises UnansweredError.
    """

    def __init__(self, address: str, key: str | None) -> None:
        self._address = address
        self._headers = {} if key is None else {HEADER: key}

    def is_live(self) -> bool:
        try:
            return self._asked(_SHORT_SECONDS, lambda client: bool(client.is_server_live()))
        except UnansweredError:
            return False

    def unload(self, model: str) -> None:
        """It takes no more requests, and those under way are answered, after this has returned as well."""
        self._asked(_SHORT_SECONDS, lambda client: client.unload_model(model, self._headers))

    def loaded(self) -> set[str]:
        """Models that serve, or still answer their last requests."""
        index = self._asked(_SHORT_SECONDS, lambda client: client.get_model_repository_index(self._headers))
        return {each["name"] for each in index if each.get("state", "UNAVAILABLE") != "UNAVAILABLE"}

    def reload(self, model: str) -> None:
        """Start its processes anew. Triton does nothing where nothing changed, so something has to."""
        config = self._asked(_SHORT_SECONDS, lambda client: client.get_model_config(model))
        config.setdefault("parameters", {})["reloaded"] = {"string_value": str(time.time())}
        again = json.dumps(config)
        self._asked(LOAD_SECONDS, lambda client: client.load_model(model, self._headers, config=again))

    def ask(self, served: Served, image: bytes, timeout: float) -> tuple[int, ...]:
        """Shape of the mask of an encoded image."""
        given = {tensors.IMAGE: image} | ({SEGMENTER: served.segmenter.encode()} if served.segmenter else {})
        given_tensors = [http.InferInput(name, [1], "BYTES") for name in given]
        for tensor, value in zip(given_tensors, given.values(), strict=True):
            tensor.set_data_from_numpy(np.array([value], dtype=object))
        wanted = [http.InferRequestedOutput(tensors.MASK)]
        answer = self._asked(timeout, lambda client: client.infer(served.ensemble, given_tensors, outputs=wanted))
        return tuple(answer.as_numpy(tensors.MASK).shape)

    def answered(self) -> int:
        """Masks given out since the server started; by the last model alone: one that hangs has passed the others."""
        statistics = self._asked(_SHORT_SECONDS, lambda client: client.get_inference_statistics(contract.WAS))
        return sum(int(each["inference_stats"]["success"].get("count", 0)) for each in statistics["model_stats"])

    def _asked(self, timeout: float, ask: Callable[[Any], Answer]) -> Answer:
        try:
            with _connection(self._address, timeout) as client:
                return ask(client)
        except InferenceServerException as error:
            raise UnansweredError(_one_line(error.message())) from error
        except Exception as error:  # Whatever sockets and gevent raise.
            raise UnansweredError(f"no answer: {_one_line(error) or type(error).__name__}") from error


@contextmanager
def _connection(address: str, timeout: float) -> Iterator[Any]:
    client = http.InferenceServerClient(address, connection_timeout=min(timeout, 5.0), network_timeout=timeout)
    try:
        yield client
    finally:
        client.close()


def _one_line(error: object) -> str:
    # Python's stack follows the first line, with line ends written as \\n.
    return " ".join(str(error).split("\\n")[0].split())
