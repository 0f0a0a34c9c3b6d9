"""What the launcher itself says to the server: load this, answer that.

It asks over HTTP, not over `slime_client`'s gRPC channel. gRPC listens where the operator wants it, with a certificate
for another name than this machine's loopback address, and may ask its clients for certificates of an authority whose
key the launcher does not have. HTTP always stays on the loopback address, where none of that matters.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from tritonclient import http
from tritonclient.utils import InferenceServerException

from slime_repository import contract
from slime_repository.contents import Served
from slime_serve.settings import HEADER, ServeError
from slime_was import tensors

# A network of several gigabytes takes its time.
LOAD_SECONDS = 600.0
PROBE_SIZE = (48, 64)
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
        """Return whether the server answers."""
        try:
            return self._asked(_SHORT_SECONDS, lambda client: bool(client.is_server_live()))
        except UnansweredError:
            return False

    def version(self) -> str:
        """Return Triton's version, such as "2.51.0"."""
        return str(self._asked(_SHORT_SECONDS, lambda client: client.get_server_metadata()["version"]))

    def unready(self) -> list[str]:
        """Return the loaded models that Triton calls unready: from 2.65 on, those one of whose processes died."""
        loaded = self.ready()
        return self._asked(LOAD_SECONDS, lambda client: [model for model in loaded if not client.is_model_ready(model)])

    def unload(self, model: str) -> None:
        """Let the model take no more requests; those under way are answered, after this has returned as well."""
        self._asked(_SHORT_SECONDS, lambda client: client.unload_model(model, self._headers))

    def loaded(self) -> set[str]:
        """Return the models that serve, or still answer their last requests."""
        return {each["name"] for each in self._index() if each.get("state", "UNAVAILABLE") != "UNAVAILABLE"}

    def ready(self) -> dict[str, int]:
        """Return the latest version of each model that serves."""
        found: dict[str, int] = {}
        for each in self._index():
            if each.get("state") == "READY":
                found[each["name"]] = max(found.get(each["name"], 0), int(each["version"]))
        return found

    def reload(self, model: str) -> None:
        """Start the model's processes anew. Triton does nothing where nothing changed, so something has to."""
        self.change(model, "reloaded", str(time.time()))

    def change(self, model: str, parameter: str, value: str) -> None:
        """Load the model again with another value of a parameter. An ensemble answers meanwhile: it has no process."""
        config = self._asked(_SHORT_SECONDS, lambda client: client.get_model_config(model))
        config.setdefault("parameters", {})[parameter] = {"string_value": value}
        again = json.dumps(config)
        self._asked(LOAD_SECONDS, lambda client: client.load_model(model, self._headers, config=again))

    def probe(self, served: Served, timeout: float) -> float:
        """Return how many seconds the segmenter took to answer a small generated image with a mask of its size.

        Triton calls itself ready while the Python process behind a model is dead, so only an answer counts.
        """
        given = {tensors.IMAGE: _picture()}
        if served.segmenter:
            given[tensors.SEGMENTER] = served.segmenter.encode()
        inputs = [http.InferInput(name, [1], "BYTES") for name in given]
        for tensor, value in zip(inputs, given.values(), strict=True):
            tensor.set_data_from_numpy(np.array([value], dtype=object))
        wanted = [http.InferRequestedOutput(tensors.MASK)]
        begun = time.monotonic()
        answer = self._asked(timeout, lambda client: client.infer(served.ensemble, inputs, outputs=wanted))
        seconds = time.monotonic() - begun
        shape = tuple(answer.as_numpy(tensors.MASK).shape)
        if shape != PROBE_SIZE:
            raise UnansweredError(f"got a mask of shape {shape}, expected {PROBE_SIZE}; export it again")
        return seconds

    def counts(self, timeout: float) -> tuple[int, int, int]:
        """Return the numbers of masks given out, of images that failed after decoding, and of images in the networks.

        All by Triton's statistics, and only good for comparisons with themselves: what was decoded and neither failed
        later nor became a mask counts as in the networks, and a model that is loaded again counts from 0.
        """
        statistics = self._asked(timeout, lambda client: client.get_inference_statistics())
        decoded = answered = failed = 0
        for each in statistics["model_stats"]:
            model, stats = each["name"], each["inference_stats"]
            succeeded = int(stats["success"].get("count", 0))
            if contract.is_preprocess(model) or model == contract.SEGMENTERS:
                decoded += succeeded
            elif model == contract.WAS or contract.is_encoder(model) or contract.is_unet(model):
                failed += int(stats["fail"].get("count", 0))
                answered += succeeded if model == contract.WAS else 0
        return answered, failed, decoded - failed - answered

    def _index(self) -> list[dict[str, str]]:
        return list(self._asked(_SHORT_SECONDS, lambda client: client.get_model_repository_index(self._headers)))

    def _asked(self, timeout: float, ask: Callable[[Any], Answer]) -> Answer:
        waiting = {"connection_timeout": min(timeout, 5.0), "network_timeout": timeout}
        try:
            with closing(http.InferenceServerClient(self._address, **waiting)) as client:
                return ask(client)
        except InferenceServerException as error:
            raise UnansweredError(_one_line(error.message())) from error
        except Exception as error:  # Whatever sockets and gevent raise.
            raise UnansweredError(f"no answer: {_one_line(error) or type(error).__name__}") from error


def _picture() -> bytes:
    gradient = np.linspace(0, 255, PROBE_SIZE[0] * PROBE_SIZE[1] * 3).reshape(*PROBE_SIZE, 3).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(gradient).save(buffer, "PNG")
    return buffer.getvalue()


def _one_line(error: object) -> str:
    # Python's stack follows the first line, with line ends written as \\n.
    return " ".join(str(error).split("\\n")[0].split())
