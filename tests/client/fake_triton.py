"""A Triton gRPC server small enough for tests: the real protocol, no models.

It answers ServerLive, ModelConfig, RepositoryIndex and ModelInfer with the stubs tritonclient ships. Its segmenter
`car` decodes the image and gives every pixel of the right half part 1, or does what a test tells it to.
"""

import io
import json
import struct
import threading
import time
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass, field
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
    index_closed: bool = False
    received: list[bytes] = field(default_factory=list)
    outputs: list[list[str]] = field(default_factory=list)
    port: int = 0

    def start(self) -> None:
        """Listen on a free port of 127.0.0.1."""
        self._server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def stop(self) -> None:
        """Go, cancelling what is in flight."""
        stopped: threading.Event = self._server.stop(None)
        stopped.wait()

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    def ServerLive(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerLiveResponse(live=True)

    def RepositoryIndex(self, request: Any, context: Any) -> Any:
        if self.index_closed:
            abort(context, Refusal(grpc.StatusCode.UNAVAILABLE, "This protocol is restricted"))
        answer = service_pb2.RepositoryIndexResponse()
        for name in self.models:
            answer.models.add(name=name, version="1", state="READY")
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
        time.sleep(self.delay_s)
        data = bytes_tensor(request.raw_input_contents[0])
        self.received.append(data)
        self.outputs.append([output.name for output in request.outputs])
        if request.model_name not in self.models:
            abort(context, unknown(request.model_name))
        try:
            mask = self.mask_of(data)
        except Refusal as refusal:
            abort(context, refusal)
        return self._answer(request, mask)

    def _answer(self, request: Any, mask: npt.NDArray[Any]) -> Any:
        answer = service_pb2.ModelInferResponse(model_name=request.model_name, model_version=self.version)
        for output in request.outputs:
            if output.name == "MASK":
                kind = {"uint8": "UINT8", "int64": "INT64"}[mask.dtype.name]
                answer.outputs.add(name="MASK", datatype=kind, shape=mask.shape)
                answer.raw_output_contents.append(mask.tobytes())
            elif output.name == "SCORES":
                answer.outputs.add(name="SCORES", datatype="FP32", shape=[3, 4, 4])
                answer.raw_output_contents.append(np.arange(48, dtype=np.float32).tobytes())
        return answer


def unknown(name: str) -> Refusal:
    """What Triton says of a model it does not have."""
    return Refusal(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{name}' is not found")


def abort(context: Any, refusal: Refusal) -> NoReturn:
    """End the call with an error."""
    context.abort(refusal.code, refusal.details)
    raise AssertionError("abort returns never")


def bytes_tensor(content: bytes) -> bytes:
    """The one element of a BYTES tensor: a length, then the bytes."""
    (length,) = struct.unpack_from("<I", content)
    assert len(content) == 4 + length
    return content[4:]
