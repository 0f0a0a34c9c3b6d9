"""Asks a running Triton server, over gRPC, to take what was published: load, check, and nothing else.

The server must be in explicit mode (`--model-control-mode=explicit`), which `serve/launch.py` starts it in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from slime_export.errors import ServerError

Array = npt.NDArray[np.float32]
Answer = TypeVar("Answer")

# A UNet of several GB is read from disk and, on a GPU, tuned while it loads.
DEADLINE_S = 600.0
# GPUs multiply with fewer bits than the CPU that made the expected values.
TOLERANCE = 1e-2


class Server:
    """A live server at `url` (host:port of its gRPC endpoint). Every method raises ServerError, in one line."""

    def __init__(self, url: str) -> None:
        try:
            import tritonclient.grpc as triton
        except ModuleNotFoundError as error:
            raise ServerError("publishing to a running server needs tritonclient: pip install .[client]") from error
        self.url = url
        self._triton: Any = triton
        self._client = self._asked("start of a connection", lambda: triton.InferenceServerClient(url))
        if not self._asked("readiness", lambda: self._client.is_server_live(client_timeout=10.0)):
            raise ServerError(f"server {url}: is not live; start it, or leave --url out")

    def load(self, model: str) -> None:
        """Loads, or loads again, what the server's repository has of `model`."""
        self._asked(f"load of {model}", lambda: self._client.load_model(model, client_timeout=DEADLINE_S))

    def unload(self, model: str) -> None:
        self._asked(f"unload of {model}", lambda: self._client.unload_model(model, client_timeout=DEADLINE_S))

    def has(self, model: str, version: int) -> bool:
        """Whether this version is ready to answer."""
        try:
            ready = self._client.is_model_ready(model, str(version), client_timeout=DEADLINE_S)
        except Exception:  # a model the server never heard of is an error to it; a server that is gone fails to load
            return False
        return bool(ready)

    def require(self, model: str, version: int) -> None:
        """Raises ServerError unless this version is ready."""
        if not self.has(model, version):
            raise ServerError(
                f"server {self.url}: has no version {version} of {model} after loading it; "
                "check that it serves the repository published into"
            )

    def check(self, model: str, version: int, inputs: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
        """Raises ServerError unless the version answers `inputs` with `expected`, within TOLERANCE of its largest."""
        answer = self._asked(
            f"check of {model} version {version}",
            lambda: self._client.infer(
                model, [self._input(*each) for each in inputs.items()], str(version), client_timeout=DEADLINE_S
            ),
        )
        for name, value in expected.items():
            got = answer.as_numpy(name)
            gap = float(np.abs(got - value).max() / np.abs(value).max()) if np.shape(got) == value.shape else np.inf
            if not gap <= TOLERANCE:
                raise ServerError(
                    f"server {self.url}: {model} version {version} answers {name} with a difference of {gap:.2g}, "
                    f"expected at most {TOLERANCE:g}; the version before serves on"
                )

    def _input(self, name: str, value: Array) -> Any:
        tensor = self._triton.InferInput(name, list(value.shape), "FP32")
        tensor.set_data_from_numpy(value)
        return tensor

    def _asked(self, what: str, ask: Callable[[], Answer]) -> Answer:
        try:
            return ask()
        except Exception as error:  # tritonclient passes on grpc's own exceptions as well
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ServerError(f"server {self.url}: {what} failed ({reason}); the version before serves on") from error
