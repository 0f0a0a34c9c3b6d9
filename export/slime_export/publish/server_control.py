"""Asks a running Triton server, over gRPC, to take what was published: load, check, and nothing else.

The server must be in explicit mode (`--model-control-mode=explicit`), which `serve/launch.py` starts it in.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2
from tritonclient.grpc.model_config_pb2 import ModelConfig

from slime_client import Access, SegmenterError, protocol
from slime_client.blocking import Connection
from slime_client.diagnosis import is_puzzling, mistake
from slime_client.errors import nobody_answers, reason
from slime_export.errors import ExportError, ServerError
from slime_repository import config as triton_config
from slime_repository.record import Check, Mask
from slime_was import tensors

# A UNet of several GB is read from disk and, on a GPU, tuned while it loads.
DEADLINE_S = 600.0
_SHORT_S = 10.0
# How the name ends that a version is tried under.
TRIAL = ".next"
READY, UNLOADING, UNAVAILABLE = "READY", "UNLOADING", "UNAVAILABLE"


class Server:
    """A live server at `url` (host:port of its gRPC endpoint). Every method raises ServerError, in one line.

    Making one also raises ExportError, where `access` cannot be used.
    """

    def __init__(self, url: str, access: Access | None = None) -> None:
        if "," in url:
            raise ExportError(
                f"--url {url}: names several servers, expected one; push to an object store that all of them pull from"
            )
        self.url, self._access = url, access or Access()
        try:
            self._connection = Connection(url, self._access)
        except SegmenterError as error:
            raise ExportError(str(error)) from error
        if not self._ask("the first call", "ServerLive", service_pb2.ServerLiveRequest(), _SHORT_S).live:
            raise ServerError(f"server {url}: is not live; start it, or leave --url out")

    def load(self, model: str) -> None:
        """Load, or load again, what the server's repository has of `model`."""
        self._ask(f"load of {model}", "RepositoryModelLoad", service_pb2.RepositoryModelLoadRequest(model_name=model))

    def unload(self, model: str) -> None:
        """Unload `model`, and return when every request that reached it is answered."""
        request = service_pb2.RepositoryModelUnloadRequest(model_name=model)
        self._ask(f"unload of {model}", "RepositoryModelUnload", request)
        deadline = time.monotonic() + DEADLINE_S
        while any(state in (READY, UNLOADING) for state in self.states().get(model, {}).values()):
            if time.monotonic() > deadline:
                raise ServerError(f"server {self.url}: {model} still has requests after {DEADLINE_S:g} s; try again")
            time.sleep(0.01)

    def states(self) -> dict[str, dict[int, str]]:
        """Return model -> version -> READY, LOADING, UNLOADING or UNAVAILABLE, of all the server has or had loaded."""
        index = self._ask("list of models", "RepositoryIndex", service_pb2.RepositoryIndexRequest(), _SHORT_S)
        found: dict[str, dict[int, str]] = {}
        for each in index.models:
            found.setdefault(each.name, {})[int(each.version or 0)] = each.state or UNAVAILABLE
        return found

    def has(self, model: str, version: int) -> bool:
        """Return whether this version is ready to answer."""
        request = service_pb2.ModelReadyRequest(name=model, version=str(version))
        try:
            return bool(self._connection.ask("ModelReady", request, DEADLINE_S).ready)
        except (
            grpc.RpcError
        ):  # a model the server never heard of is an error to it; a server that is gone fails to load
            return False

    def require(self, model: str, version: int) -> None:
        """Raise ServerError unless this version is ready."""
        if not self.has(model, version):
            raise ServerError(
                f"server {self.url}: has no version {version} of {model} after loading it; "
                "check that it serves the repository published into"
            )

    def unload_trials(self) -> None:
        """Unload what publications that were killed in their trial left. The caller holds the repository's lock."""
        # Without `ready` the list is of what the repository has, which is nothing of a trial.
        request = service_pb2.RepositoryIndexRequest(ready=True)
        index = self._ask("list of loaded models", "RepositoryIndex", request, _SHORT_S)
        for model in sorted({each.name for each in index.models if each.name.endswith(TRIAL)}):
            self.unload(model)

    def try_out(self, name: str, config: str, check: Check, segmenter: str | None = None) -> float:
        """Have the server load this ensemble configuration under a name of its own, and answer `check` with it.

        `segmenter`: which one is asked for, where the ensemble serves shared ones. No client sees the name, and the
        ensemble `name` is not touched. Returns the seconds that the answer took. Raises ServerError where the server
        refuses the configuration, or answers wrongly.
        """
        # A dot, which no segmenter's name has. Triton wants a file in the version's folder to know of the version.
        private = name + TRIAL
        request = service_pb2.RepositoryModelLoadRequest(model_name=private)
        request.parameters["config"].string_param = _as_json(config, private)
        request.parameters["file:1/version"].bytes_param = b"1"
        try:
            self._ask(f"load of {name}'s next version", "RepositoryModelLoad", request)
            return self._require(check, segmenter or name, private, segmenter)
        finally:
            with suppress(ServerError):
                self.unload(private)

    def try_shared(self, group: str, name: str, check: Check) -> float:
        """Ask the group's ensemble for the segmenter of this name; return the seconds that took.

        Raises ServerError where it answers wrongly.
        """
        return self._require(check, name.lstrip("."), group, name)

    def _require(self, check: Check, name: str, model: str, segmenter: str | None) -> float:
        given = {tensors.IMAGE: check.image} | ({tensors.SEGMENTER: segmenter.encode()} if segmenter else {})
        begun = time.monotonic()
        mask_HW = self._mask(model, given)
        seconds = time.monotonic() - begun
        if complaint := check.complaint(mask_HW):
            raise ServerError(f"server {self.url}: {name}'s next version {complaint}; the version before serves on")
        return seconds

    def _mask(self, model: str, given: dict[str, bytes]) -> Mask:
        """Return the mask, uint8 (H, W), that `model` answers the input tensors `given` with."""
        what = f"inference of {model}"
        answer = self._ask(what, "ModelInfer", protocol.infer(model, given, [tensors.MASK]))
        try:
            return protocol.output(answer, tensors.MASK, np.uint8, 2)
        except SegmenterError as error:
            raise ServerError(f"server {self.url}: {what} failed ({error}); nothing was changed") from error

    def _ask(self, what: str, method: str, request: Any, timeout: float = DEADLINE_S) -> Any:
        """Return the server's answer to one call; `what` names the call in the message of a ServerError."""
        try:
            return self._connection.ask(method, request, timeout)
        except grpc.RpcError as error:
            raise ServerError(f"{self._why(what, error)}; nothing was changed") from error

    def _why(self, what: str, error: grpc.RpcError) -> str:
        """Return why a call failed, and what to do where that is known."""
        said = " ".join(str(error.details()).split()) or error.code().name
        if is_puzzling(said) and (found := mistake(self.url, said)):
            return found
        if "protocol is restricted" in said:
            if self._access.admin_key_file:
                return self._access.wrong_key(self.url)
            return f"server {self.url}: {what} is restricted; give --admin-key-file the file with the server's key"
        if error.code() is grpc.StatusCode.UNAVAILABLE and nobody_answers(said):
            down = f"{what} failed, because no Triton server answers ({reason(said)})"
            return f"server {self.url}: {down}; start it, or leave --url out"
        return f"server {self.url}: {what} failed ({said})"


def _as_json(config: str, name: str) -> str:
    """Return the text of a config.pbtxt as Triton's load call wants it, of a model called `name`."""
    from google.protobuf import json_format  # type: ignore[import-untyped]

    named = ModelConfig()
    named.CopyFrom(triton_config.parsed(config))
    named.name = name
    return str(json_format.MessageToJson(named, preserving_proto_field_name=True))
