"""Triton's messages: requests built, tensors taken out of answers. Knows no segmenters and sends nothing."""

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2

from slime_client.errors import INTERNAL, SegmenterError

_DTYPES = {"UINT8": np.uint8, "INT32": np.int32, "INT64": np.int64, "FP32": np.float32}


def infer(model: str, inputs: Mapping[str, bytes | None], outputs: Sequence[str]) -> Any:
    """A request of BYTES tensors of one element each; None for one that lies in shared memory."""
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, data in inputs.items():
        request.inputs.add(name=name, datatype="BYTES", shape=[1])
        if data is not None:
            request.raw_input_contents.append(element(data))
    for name in outputs:
        request.outputs.add(name=name)
    return request


def element(data: bytes) -> bytes:
    """One element of a BYTES tensor: its length, then itself."""
    return struct.pack("<I", len(data)) + data


def configuration(model: str, version: str = "") -> Any:
    """A request for a model's configuration; of its latest version without one."""
    return service_pb2.ModelConfigRequest(name=model, version=version)


def index() -> Any:
    """A request for the names and states of all models."""
    return service_pb2.RepositoryIndexRequest()


def live() -> Any:
    """A request whether the server answers."""
    return service_pb2.ServerLiveRequest()


def parameters(answer: Any) -> dict[str, str]:
    """The parameters of a configuration that was asked for."""
    return {key: value.string_value for key, value in answer.config.parameters.items()}


def output(
    answer: Any, name: str, dtype: type[np.generic], dimensions: int, elsewhere: bytes = b""
) -> npt.NDArray[Any]:
    """One output tensor of an answer, writable.

    Args:
        answer: a ModelInferResponse.
        name: the output's.
        dtype: what it has to be.
        dimensions: how many it has to have.
        elsewhere: the shared memory that the request pointed at, where it did; the answer's own contents come first.

    Raises:
        SegmenterError: INTERNAL when it is missing, or of another type or number of dimensions.
    """
    kind, shape, content = _found(answer, name)
    if _DTYPES.get(kind) is not dtype or len(shape) != dimensions:
        got = f"{kind.lower()} {tuple(shape)}" if kind else "nothing"
        raise wrong(name, got, f"{np.dtype(dtype).name} with {dimensions} dimensions")
    size = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        # A copy, because gRPC's own bytes cannot be written to.
        return np.frombuffer(content or elsewhere[:size], dtype).reshape(shape).copy()
    except ValueError as error:
        raise wrong(name, f"{len(content)} bytes", f"{tuple(shape)}") from error


def text(answer: Any, name: str) -> str:
    """An output of one BYTES element, as UTF-8.

    Raises:
        SegmenterError: INTERNAL when it is missing or something else.
    """
    kind, _shape, content = _found(answer, name)
    if kind != "BYTES" or element(content[4:]) != content:
        raise wrong(name, kind or "nothing", "one BYTES element")
    return content[4:].decode("utf-8", "replace")


def wrong(name: str, got: str, expected: str) -> SegmenterError:
    """An output that no segmenter of this project gives."""
    return SegmenterError(
        f"{name}: got {got} from the server, expected {expected}; is it a segmenter of this project?", INTERNAL
    )


def _found(answer: Any, name: str) -> tuple[str, list[int], bytes]:
    # An output in shared memory has empty contents here.
    contents = dict(enumerate(answer.raw_output_contents))
    for place, tensor in enumerate(answer.outputs):
        if tensor.name == name:
            return tensor.datatype, list(tensor.shape), contents.get(place, b"")
    return "", [], b""
