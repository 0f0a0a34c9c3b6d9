"""Asks a running Triton server, over gRPC, to take what was published: load, check, and nothing else.

The server must be in explicit mode (`--model-control-mode=explicit`), which `serve/launch.py` starts it in.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np

from slime_export.errors import ServerError, WrongMaskError
from slime_export.publish.access import Access
from slime_repository import config as triton_config
from slime_repository.record import Check, Mask
from slime_was import tensors
from slime_was.tensors import SEGMENTER

Answer = TypeVar("Answer")

# A UNet of several GB is read from disk and, on a GPU, tuned while it loads.
DEADLINE_S = 600.0
READY, UNLOADING, UNAVAILABLE = "READY", "UNLOADING", "UNAVAILABLE"


class Server:
    """A live server at `url` (host:port of its gRPC endpoint). Every method raises ServerError, in one line.

    The start also raises ExportError, where `access` cannot be used.
    """

    def __init__(self, url: str, access: Access | None = None) -> None:
        try:
            import tritonclient.grpc as triton
        except ModuleNotFoundError as error:
            raise ServerError("publishing to a running server needs tritonclient: pip install .[client]") from error
        self.url = url
        self._triton: Any = triton
        access = access or Access()
        self._headers, connection = access.headers(url), access.connection()
        self._client = self._asked("start of a connection", lambda: triton.InferenceServerClient(url, **connection))
        if not self._asked("readiness", lambda: self._client.is_server_live(self._headers, client_timeout=10.0)):
            raise ServerError(f"server {url}: is not live; start it, or leave --url out")

    def load(self, model: str) -> None:
        """Loads, or loads again, what the server's repository has of `model`."""
        self._asked(
            f"load of {model}", lambda: self._client.load_model(model, self._headers, client_timeout=DEADLINE_S)
        )

    def unload(self, model: str) -> None:
        """Returns when every request that reached the model is answered."""
        self._asked(
            f"unload of {model}", lambda: self._client.unload_model(model, self._headers, client_timeout=DEADLINE_S)
        )
        deadline = time.monotonic() + DEADLINE_S
        while any(state in (READY, UNLOADING) for state in self.states().get(model, {}).values()):
            if time.monotonic() > deadline:
                raise ServerError(f"server {self.url}: {model} still has requests after {DEADLINE_S:g} s; try again")
            time.sleep(0.01)

    def states(self) -> dict[str, dict[int, str]]:
        """Model -> version -> READY, LOADING, UNLOADING or UNAVAILABLE, of all that the server has or had loaded."""
        index = self._asked(
            "list of models", lambda: self._client.get_model_repository_index(self._headers, client_timeout=10.0)
        )
        found: dict[str, dict[int, str]] = {}
        for each in index.models:
            found.setdefault(each.name, {})[int(each.version or 0)] = each.state or UNAVAILABLE
        return found

    def has(self, model: str, version: int) -> bool:
        """Whether this version is ready to answer."""
        try:
            ready = self._client.is_model_ready(model, str(version), self._headers, client_timeout=DEADLINE_S)
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

    def try_out(self, name: str, config: str, check: Check, segmenter: str | None = None) -> None:
        """Has the server load this ensemble configuration under a name of its own, and answer `check` with it.

        `segmenter`: which one is asked for, where the ensemble is that of shared ones. No client sees that name, and the segmenter `name` is not touched. Raises ServerError where the server refuses
        it, or answers wrongly.
        """
        # A dot, which no segmenter's name has. Triton wants a file in the version's folder to know of the version.
        private, files = f"{name}.next", {"file:1/version": b"1"}
        override = _as_json(config, private)
        try:
            self._asked(
                f"load of {name}'s next version",
                lambda: self._client.load_model(private, self._headers, override, files, DEADLINE_S),
            )
            self._require(check, self._mask(private, check.image, segmenter), segmenter or name)
        finally:
            with suppress(ServerError):
                self.unload(private)

    def try_shared(self, group: str, name: str, check: Check) -> None:
        """Asks the group's ensemble for the segmenter of this name. Raises ServerError where it answers wrongly."""
        self._require(check, self._mask(group, check.image, name), name.lstrip("."))

    def _require(self, check: Check, mask_HW: Mask | None, name: str) -> None:
        if complaint := check.complaint(mask_HW):
            raise WrongMaskError(f"server {self.url}: {name}'s next version {complaint}; the version before serves on")

    def _mask(self, model: str, image: bytes, segmenter: str | None = None) -> Mask | None:
        given = {tensors.IMAGE: image} | ({SEGMENTER: segmenter.encode()} if segmenter else {})
        inputs = [self._triton.InferInput(name, [1], "BYTES") for name in given]
        for each, value in zip(inputs, given.values(), strict=True):
            each.set_data_from_numpy(np.array([value], dtype=object))
        wanted = [self._triton.InferRequestedOutput(tensors.MASK)]
        answer = self._asked(
            f"inference of {model}",
            lambda: self._client.infer(model, inputs, outputs=wanted, headers=self._headers, client_timeout=DEADLINE_S),
        )
        mask_HW: Mask | None = answer.as_numpy(tensors.MASK)
        return mask_HW

    def _asked(self, what: str, ask: Callable[[], Answer]) -> Answer:
        try:
            return ask()
        except Exception as error:  # tritonclient passes on grpc's own exceptions as well
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ServerError(f"server {self.url}: {what} failed ({reason}); nothing was changed") from error


def _as_json(config: str, name: str) -> str:
    """The text of a config.pbtxt as Triton's load call wants it, of a model called `name`."""
    from google.protobuf import json_format  # type: ignore[import-untyped]

    named = type(parsed := triton_config.parsed(config))()
    named.CopyFrom(parsed)
    named.name = name
    return str(json_format.MessageToJson(named, preserving_proto_field_name=True))
