"""Triton backend ``onnxruntime`` for servers without NVIDIA's own: answers the same repository, in Python, on the CPU.

Triton takes a folder ``<backends>/onnxruntime`` holding this file for the backend of that name; where the native
library lies in such a folder, that one is used. Understands ``model.onnx`` with external data, batching along the
first dimension, and of accelerators ``openvino``; nothing of instance groups. Threads: environment SLIME_SERVE_THREADS.

The first network, which gives out LATENTS, waits while another has a full batch to compute, because then more wait
behind it: under overload requests queue before the first network, where they can be rejected, and not after it. The
others begin when the first is through, so that what it computes joins their batch.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

# Here the launcher puts a copy of what is imported from slime_repository.
sys.path.append(str(Path(__file__).parent))
from slime_repository.openvino_network import FP32, PRECISION, OpenVinoError, OpenVinoNetwork

LATENTS = "LATENTS"
THREADS_VARIABLE = "SLIME_SERVE_THREADS"
# Networks leave the cores to the models around them: masks get done at once, and what has to wait does so where it
# becomes a batch. More would cost a lone request, whose network then yields to all that a server does besides.
NICENESS = 3
# A configuration asks for a warm-up with each batch size, as GPUs prepare themselves for each. ONNX Runtime on a CPU
# has run them all when it has run one image and the largest batch, which reserves the memory for the others: left out
# where that takes longer than so many seconds. OpenVINO prepares itself for each, the smallest first, within them.
WARM_UP_SECONDS = 2.0
_SPIN_MICROSECONDS = "20"  # more cost several images at once what it gave a lone one
_SPINS_FOR_A_TIME = (1, 26)  # ONNX Runtime before spins until it has something to do, or not at all.


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self.name = config["name"]
        self.batches = config["max_batch_size"]
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.is_first = LATENTS in [tensor["name"] for tensor in config["output"]]
        precision = _openvino_precision(config)
        self.warm_up = _WarmUp(config, every=precision is not None)
        # This file is one server's own copy; locked by the first network, and by others that compute a full batch.
        self.computing = os.open(__file__, os.O_RDONLY)
        os.nice(NICENESS)  # Threads that are made from now on, the session's, take after this one.
        path = Path(args["model_repository"], args["model_version"], "model.onnx")
        self.network = _Onnx(path) if precision is None else _OpenVino(path, precision, self.name)
        _check_names("inputs", self.inputs, self.network.inputs)
        _check_names("outputs", [tensor["name"] for tensor in config["output"]], self.network.outputs)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request; those that Triton's dynamic batcher handed over together run together."""
        if self.warm_up.is_needless():
            return [pb_utils.InferenceResponse([]) for _ in requests]
        try:
            feeds = [self._feeds(request) for request in requests]
            with self._turn(sum(len(each[self.inputs[0]]) for each in feeds)):
                return self._respond(requests, feeds)
        except Exception as error:  # Their texts can name files of the server.
            pb_utils.Logger.log_error(f"{self.name}: {error!r}")
            message = f"{self.name}: inference failed; the server's log has the reason"
            return [_failed(message, pb_utils.TritonError.INTERNAL) for _ in requests]

    @contextmanager
    def _turn(self, images: int) -> Iterator[None]:
        """Waits for it; others wait until the block ends, but not for a part of a batch."""
        fcntl.flock(self.computing, fcntl.LOCK_EX if self.is_first else fcntl.LOCK_SH)
        try:
            if not self.is_first and (not self.batches or images < self.batches):
                fcntl.flock(self.computing, fcntl.LOCK_UN)
            yield
        finally:
            fcntl.flock(self.computing, fcntl.LOCK_UN)

    def _respond(self, requests: list[Any], feeds: list[dict[str, Any]]) -> list[Any]:
        responses: list[Any] = [_cancelled() if request.is_cancelled() else None for request in requests]
        waiting = [index for index, response in enumerate(responses) if response is None]
        for group in [waiting] if self.batches and waiting else [[index] for index in waiting]:
            answers = self._run([requests[index] for index in group], [feeds[index] for index in group])
            for index, response in zip(group, answers, strict=True):
                responses[index] = response
        return responses

    def _run(self, requests: list[Any], feeds_per_request: list[dict[str, Any]]) -> list[Any]:
        wanted = sorted({name for request in requests for name in request.requested_output_names()})
        if len(requests) == 1:
            return [_response(wanted, self.network.run(wanted, feeds_per_request[0]))]
        feeds = {name: np.concatenate([feeds[name] for feeds in feeds_per_request]) for name in self.inputs}
        outputs = self.network.run(wanted, feeds)
        ends = list(accumulate(len(feeds[self.inputs[0]]) for feeds in feeds_per_request))
        spans = zip([0, *ends], ends, strict=False)
        return [_response(wanted, [output[start:end] for output in outputs]) for start, end in spans]

    def _feeds(self, request: Any) -> dict[str, Any]:
        return {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}


class _WarmUp:
    """Triton runs the samples of a configuration, the largest last, before it passes requests on."""

    def __init__(self, config: dict[str, Any], *, every: bool) -> None:
        self._every = every
        self._left = sum(max(1, int(sample.get("count", 1))) for sample in config.get("model_warmup", []))
        self._largest = max(1, config["max_batch_size"])
        self._begun: float | None = None

    def is_needless(self) -> bool:
        """Whether what is asked now is a sample that need not be computed. To be called once for each."""
        if not self._left:
            return False
        self._left -= 1
        if self._begun is None:
            self._begun = time.monotonic()
            return False
        gone = time.monotonic() - self._begun  # of the one image, where ONNX Runtime runs it
        if self._every:
            return gone > WARM_UP_SECONDS
        return self._left > 0 or gone * self._largest > WARM_UP_SECONDS


class _Onnx:
    """An ONNX file in ONNX Runtime."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = _threads()
        options.inter_op_num_threads = 1
        # Several networks share the cores, and a spinning pool takes them from the one that works: threads spin for
        # no longer than it takes from one operator to the next, which a thread that had gone to sleep would miss.
        may_spin = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) >= _SPINS_FOR_A_TIME
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(may_spin)))
        options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_MICROSECONDS)
        options.add_session_config_entry("session.force_spinning_stop", "1")  # when a run ends
        # A plan for each batch size, and a block of memory for it beside all before: a quarter more for Stable
        # Diffusion, at no gain in speed.
        options.enable_mem_pattern = False
        self._session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
        self.inputs = tuple(node.name for node in self._session.get_inputs())
        self.outputs = tuple(node.name for node in self._session.get_outputs())

    def run(self, wanted: list[str], feeds: dict[str, Any]) -> list[Any]:
        answers: list[Any] = self._session.run(wanted, feeds)
        return answers


class _OpenVino:
    """An ONNX file in OpenVINO."""

    def __init__(self, path: Path, precision: str, name: str) -> None:
        try:
            self._network = OpenVinoNetwork(path, precision, threads=_threads())
        except OpenVinoError as error:
            raise pb_utils.TritonModelException(f"{name}: {error}") from error
        self.inputs, self.outputs = self._network.inputs, self._network.outputs
        how = "loaded from its cache" if self._network.from_cache else "compiled"
        pb_utils.Logger.log_info(f"{name}: {how} by OpenVINO, {precision}")

    def run(self, wanted: list[str], feeds: dict[str, Any]) -> list[Any]:
        answers = self._network(feeds)
        return [answers[name] for name in wanted]


def _openvino_precision(config: dict[str, Any]) -> str | None:
    """Return what OpenVINO is to compute in; None for a model that ONNX Runtime runs."""
    asked = config.get("optimization", {}).get("execution_accelerators", {}).get("cpu_execution_accelerator", [])
    return next((each.get("parameters", {}).get(PRECISION, FP32) for each in asked if each["name"] == "openvino"), None)


def _threads() -> int:
    return int(os.environ.get(THREADS_VARIABLE, "0")) or len(os.sched_getaffinity(0))


def _check_names(kind: str, configured: list[str], found: tuple[str, ...]) -> None:
    missing = sorted(set(configured) - set(found))
    if missing:
        have = ", ".join(found)
        raise pb_utils.TritonModelException(f"model.onnx has {kind} {have}; config.pbtxt expects {', '.join(missing)}")


def _response(names: list[str], outputs: list[Any]) -> Any:
    tensors = [pb_utils.Tensor(name, output) for name, output in zip(names, outputs, strict=True)]
    return pb_utils.InferenceResponse(tensors)


def _cancelled() -> Any:
    return _failed("the request was cancelled", pb_utils.TritonError.CANCELLED)


def _failed(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
