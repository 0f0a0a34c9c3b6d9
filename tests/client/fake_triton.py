"""A Triton gRPC server small enough for tests: the real protocol, no models.

It answers ServerLive, ModelConfig, RepositoryIndex, ModelInfer and shared memory's calls with the stubs tritonclient
ships. Its segmenter `car` decodes the image and gives every pixel of the right half part 1, or does what a test tells
it to. Segmenters of the shared form are in `registry`: the model `segmenters` describes them, `shared_1` serves them.
"""

import io
import json
import mmap
import struct
import threading
import time
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import grpc  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from tritonclient.grpc import (  # type: ignore[import-untyped]
    service_pb2,
    service_pb2_grpc,
)

CAR = {
    "parts": json.dumps(["background", "body", "wheel"]),
    "colours": json.dumps([[0, 0, 0], [200, 30, 30], [30, 30, 200]]),
    "form": "baked",
}
MaskOf = Callable[[bytes], npt.NDArray[Any]]


class Refusal(Exception):
    """A test's wish that the server answer with an error."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code, self.details = code, details


def right_half(data: bytes) -> npt.NDArray[np.uint8]:
    """uint8 (H, W) of the oriented image; 1 in its right half."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = ImageOps.exif_transpose(image).size
    except OSError:
        raise Refusal(
            grpc.StatusCode.INVALID_ARGUMENT,
            "in ensemble 'car', image: not a JPEG, PNG or WebP; send one of these\n\nAt:\n  /opt/models/model.py(3)",
        ) from None
    mask = np.zeros((height, width), np.uint8)
    mask[:, width // 2 :] = 1
    return mask


@dataclass
class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """What the server serves and what it was sent; tests change it freely."""

    models: dict[str, dict[str, str]] = field(default_factory=lambda: {"car": dict(CAR), "was": {}})
    version: str = "1"
    retired: set[str] = field(default_factory=set)
    mask_of: MaskOf = right_half
    delay_s: float = 0.0
    lacks_sharpened: bool = False
    index_closed: bool = False
    received: list[bytes] = field(default_factory=list)
    outputs: list[list[str]] = field(default_factory=list)
    port: int = 0
    registry: dict[str, dict[str, Any]] = field(default_factory=dict)
    wanted_key: tuple[str, str] | None = None
    allows_memory: bool = True
    regions: dict[str, mmap.mmap] = field(default_factory=dict)
    refused_regions: int = 0
    pointed: list[list[str]] = field(default_factory=list)
    flying: int = 0
    most_flying: int = 0
    cancelled: threading.Event = field(default_factory=threading.Event)
    peers: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, credentials: Any = None) -> None:
        """Listen on a free port of 127.0.0.1; over TLS with grpc.ServerCredentials."""
        options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)]
        self._server = grpc.server(futures.ThreadPoolExecutor(80), options=options)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        if credentials is None:
            self.port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            self.port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self._server.start()

    def vanish(self) -> None:
        """Go at once, cancelling what is in flight: as `stop`, for what the server itself runs."""
        self._server.stop(None)

    def stop(self) -> None:
        """Go, cancelling what is in flight, and wait until everything has ended."""
        stopped: threading.Event = self._server.stop(None)
        stopped.wait()

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    def ServerLive(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerLiveResponse(live=True)

    def RepositoryIndex(self, request: Any, context: Any) -> Any:
        self._restricted(context)
        if self.index_closed:
            abort(context, Refusal(grpc.StatusCode.UNAVAILABLE, "This protocol is restricted"))
        answer = service_pb2.RepositoryIndexResponse()
        for name in self.models:
            answer.models.add(name=name, version="1", state="READY")
        if self.registry:
            answer.models.add(name="segmenters", version="1", state="READY")
        answer.models.add(name="broken", version="1", state="UNAVAILABLE")
        return answer

    def ModelConfig(self, request: Any, context: Any) -> Any:
        if request.name not in self.models or request.version in self.retired:
            abort(context, unknown(request.name))
        answer = service_pb2.ModelConfigResponse()
        answer.config.name = request.name
        for key, value in self.models[request.name].items():
            answer.config.parameters[key].string_value = value
        return answer

    def ModelInfer(self, request: Any, context: Any) -> Any:
        with self._lock:
            self.flying += 1
            self.most_flying = max(self.most_flying, self.flying)
            self.peers.add(context.peer())
        try:
            return self._infer(request, context)
        except Refusal as refusal:
            abort(context, refusal)
        finally:
            with self._lock:
                self.flying -= 1

    def SystemSharedMemoryRegister(self, request: Any, context: Any) -> Any:
        self._restricted(context)
        if not self.allows_memory:
            self.refused_regions += 1
            abort(context, Refusal(grpc.StatusCode.INVALID_ARGUMENT, "shared memory is switched off"))
        with Path(f"/dev/shm{request.key}").open("r+b") as file:
            self.regions[request.name] = mmap.mmap(file.fileno(), request.byte_size)
        return service_pb2.SystemSharedMemoryRegisterResponse()

    def SystemSharedMemoryUnregister(self, request: Any, context: Any) -> Any:
        self.regions.pop(request.name, None)
        return service_pb2.SystemSharedMemoryUnregisterResponse()

    def _restricted(self, context: Any) -> None:
        if self.wanted_key and self.wanted_key not in [
            (item.key, item.value) for item in context.invocation_metadata()
        ]:
            abort(
                context,
                Refusal(
                    grpc.StatusCode.UNAVAILABLE, f"This protocol is restricted, expecting header '{self.wanted_key[0]}'"
                ),
            )

    def _infer(self, request: Any, context: Any) -> Any:
        inputs = self._inputs(request)
        if request.model_name == "segmenters" and self.registry:
            return described(self._registered(inputs["SEGMENTER"]))
        shared = request.model_name.startswith("shared_")
        if not shared and request.model_name not in self.models:
            raise unknown(request.model_name)
        self._wait(context)
        self.received.append(inputs["IMAGE"])
        self.outputs.append([output.name for output in request.outputs])
        mask = self.mask_of(inputs["IMAGE"])
        answer = described(self._registered(inputs["SEGMENTER"])) if shared else service_pb2.ModelInferResponse()
        answer.model_name, answer.model_version = request.model_name, self.version
        self._fill(answer, request, mask)
        return answer

    def _inputs(self, request: Any) -> dict[str, bytes]:
        contents = iter(request.raw_input_contents)
        self.pointed.append([tensor.name for tensor in [*request.inputs, *request.outputs] if is_pointing(tensor)])
        return {
            tensor.name: bytes_tensor(self._memory(tensor)[:] if is_pointing(tensor) else next(contents))
            for tensor in request.inputs
        }

    def _memory(self, tensor: Any) -> memoryview:
        name, start, size = (tensor.parameters[f"shared_memory_{word}"] for word in ("region", "offset", "byte_size"))
        region = self.regions.get(name.string_param)
        if region is None:
            raise Refusal(
                grpc.StatusCode.INVALID_ARGUMENT, f"Unable to find shared memory region: '{name.string_param}'"
            )
        return memoryview(region)[start.int64_param : start.int64_param + size.int64_param]

    def _registered(self, name: bytes) -> Any:
        if not name:
            return sorted(self.registry)
        if name.decode() not in self.registry:
            raise Refusal(grpc.StatusCode.NOT_FOUND, f"segmenter {name.decode()!r}: not here")
        return self.registry[name.decode()]

    def _wait(self, context: Any) -> None:
        end = time.monotonic() + self.delay_s
        while time.monotonic() < end:
            if not context.is_active():
                self.cancelled.set()
                return
            time.sleep(0.002)

    def _fill(self, answer: Any, request: Any, mask: npt.NDArray[Any]) -> None:
        for output in request.outputs:
            if output.name == "MASK":
                kind = {"uint8": "UINT8", "int64": "INT64"}[mask.dtype.name]
                answer.outputs.add(name="MASK", datatype=kind, shape=mask.shape)
                if is_pointing(output):
                    self._memory(output)[: mask.size] = mask.tobytes()
                answer.raw_output_contents.append(b"" if is_pointing(output) else mask.tobytes())
            elif output.name == "SHARPENED" and self.lacks_sharpened:
                details = "unexpected inference output 'SHARPENED' for model 'car'"
                raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, details)
            elif output.name in ("SCORES", "SHARPENED"):
                answer.outputs.add(name=output.name, datatype="FP32", shape=[3, 4, 4])
                answer.raw_output_contents.append(np.arange(48, dtype=np.float32).tobytes())


def described(said: Any) -> Any:
    """An answer with the output DESCRIPTION, JSON."""
    answer = service_pb2.ModelInferResponse(model_version="1")
    answer.outputs.add(name="DESCRIPTION", datatype="BYTES", shape=[1])
    text = json.dumps(said).encode()
    answer.raw_output_contents.append(struct.pack("<I", len(text)) + text)
    return answer


def is_pointing(tensor: Any) -> bool:
    """Whether a tensor lies in shared memory."""
    return "shared_memory_region" in tensor.parameters


def unknown(name: str) -> Refusal:
    """What Triton says of a model it does not have."""
    return Refusal(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{name}' is not found")


def abort(context: Any, refusal: Refusal) -> NoReturn:
    """End the call with an error."""
    context.abort(refusal.code, refusal.details)
    raise AssertionError("abort returns never")


def bytes_tensor(content: bytes | memoryview) -> bytes:
    """The one element of a BYTES tensor: a length, then the bytes."""
    (length,) = struct.unpack_from("<I", content)
    assert len(content) == 4 + length
    return bytes(content[4:])
