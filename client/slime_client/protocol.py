"""What is said to a server, without a network: Triton's messages, and asking again while a server is unavailable.

Everything that takes time is written as a generator of steps (`Call`, `Pause`, `Work`): it yields a step and is sent
the step's answer, or has its error thrown in. `slime_client.blocking` takes the steps in the calling thread,
`slime_client.aio` in an event loop, and neither decides anything.
"""

import itertools
import math
import random
import struct
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, TypeVar

import grpc
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2

from slime_client import diagnosis
from slime_client.errors import INTERNAL, INVALID_ARGUMENT, UNAVAILABLE, SegmenterError, from_grpc

# Names of tensors, parameters and models, written here again so that the client imports no other component. A test
# holds those of tensors and models equal to slime_was.tensors and slime_repository.contract.
IMAGE, MASK, SCORES, SHARPENED = "IMAGE", "MASK", "SCORES", "SHARPENED"
PARTS, COLOURS, FORM, MODEL = "parts", "colours", "form", "model"
IMAGE_SECONDS = "image_seconds"
BAKED, SHARED = "baked", "shared"
# The model `segmenters` knows every segmenter in shared form by its name.
SEGMENTERS, SEGMENTER, DESCRIPTION = "segmenters", "SEGMENTER", "DESCRIPTION"

Result = TypeVar("Result")
_DTYPES = {"UINT8": np.uint8, "INT32": np.int32, "INT64": np.int64, "FP32": np.float32}


@dataclass(frozen=True, kw_only=True)
class Call:
    """Send `request` to `method` of Triton's GRPCInferenceService, with a timeout in seconds.

    The answer is the response message, or a grpc.RpcError.
    """

    method: str
    request: Any
    timeout: float


@dataclass(frozen=True)
class Pause:
    """Wait for so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Work:
    """Run a function that blocks (files, codecs). The answer is what it returns or raises."""

    function: Callable[[], Any]


Steps: TypeAlias = Generator[Call | Pause | Work, Any, Result]


@dataclass(frozen=True, kw_only=True)
class Retry:
    """Exponential back-off with full jitter, so that clients refused together do not come back together.

    The pause before try n + 1 is uniform in [0, min(longest, first * 2^(n - 1))]
    (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).

    Attributes:
        attempts: number of tries in all; with 1 nothing is tried again, and None goes on until the deadline.
        first: upper limit of the first pause, in seconds.
        longest: upper limit of every pause, in seconds.
        chance: returns numbers in [0, 1); `random.Random(7).random` gives the same pauses in every run.

    Raises:
        SegmenterError: INVALID_ARGUMENT for numbers that make no sense.
    """

    attempts: int | None = None
    first: float = 0.1
    longest: float = 2.0
    chance: Callable[[], float] = random.random

    def __post_init__(self) -> None:
        if self.attempts is not None and (not isinstance(self.attempts, int) or self.attempts < 1):
            raise SegmenterError(f"retry: got {self.attempts!r} attempts, expected 1 or more", INVALID_ARGUMENT)
        if not 0 <= self.first <= self.longest < math.inf:
            raise SegmenterError(
                f"retry: got pauses from {self.first!r} to {self.longest!r} s, expected 0 <= first <= longest",
                INVALID_ARGUMENT,
            )

    def pause(self, attempt: int) -> float:
        """Return the seconds to wait after the failed try number `attempt`, counted from 1."""
        return self.chance() * min(self.longest, self.first * 2.0 ** min(attempt - 1, 60))


class Deadline:
    """A point in time, `seconds` from now, that several calls share.

    Raises:
        SegmenterError: INVALID_ARGUMENT when `seconds` is no positive number.
    """

    def __init__(self, seconds: float) -> None:
        if not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:
            raise SegmenterError(f"timeout: got {seconds!r}, expected a positive number of seconds", INVALID_ARGUMENT)
        self.seconds = float(seconds)
        self._end = time.monotonic() + self.seconds

    def left(self) -> float:
        """Return the seconds that are left, at least a millisecond, so that gRPC itself says that time is up."""
        return max(self._end - time.monotonic(), 1e-3)


@dataclass(frozen=True, kw_only=True)
class Asker:
    """Asks the server at `url` (host:port), again as `retry` says."""

    url: str
    retry: Retry

    def ask(self, method: str, request: Any, deadline: Deadline, *, segmenter: str, subject: str) -> Steps[Any]:
        """Return the answer to one request, tried again while the server is unavailable and time is left.

        `deadline` is that of all tries and the pauses between them. Error messages name the `segmenter`, and the
        `subject`, which is what is sent or asked for.

        Raises:
            SegmenterError: whatever the server or the connection ended with.
        """
        for attempt in itertools.count(1):
            try:
                return (yield Call(method=method, request=request, timeout=deadline.left()))
            except grpc.RpcError as error:
                problem = from_grpc(error, url=self.url, segmenter=segmenter, subject=subject, timeout=deadline.seconds)
                said = str(error.details())
                puzzling = problem.code == UNAVAILABLE and diagnosis.is_puzzling(said)
                if puzzling and (found := (yield Work(partial(diagnosis.mistake, self.url, said)))):
                    raise SegmenterError(found, UNAVAILABLE) from error
                seconds = self.retry.pause(attempt)
                last = attempt == self.retry.attempts or seconds >= deadline.left()
                if problem.code != UNAVAILABLE or last:
                    raise problem from error
            yield Pause(seconds)
        raise AssertionError("counting has no end")


def infer(model: str, inputs: Mapping[str, bytes | None], outputs: Sequence[str]) -> Any:
    """Build a request with BYTES tensors of one element each; None stands for one that lies in shared memory."""
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, data in inputs.items():
        request.inputs.add(name=name, datatype="BYTES", shape=[1])
        if data is not None:
            request.raw_input_contents.append(element(data))
    for name in outputs:
        request.outputs.add(name=name)
    return request


def element(data: bytes) -> bytes:
    """Return one element of a BYTES tensor as it is sent: its length, then the bytes."""
    return struct.pack("<I", len(data)) + data


def output(
    answer: Any, name: str, dtype: type[np.generic], dimensions: int, elsewhere: bytes = b""
) -> npt.NDArray[Any]:
    """Return one output tensor of a ModelInferResponse as a writable array of `dtype` with so many dimensions.

    `elsewhere` is the shared memory that the request pointed at, if any; the answer's own contents come first.

    Raises:
        SegmenterError: INTERNAL when it is missing, or of another type or number of dimensions.
    """
    kind, shape, content = _found(answer, name)
    if _DTYPES.get(kind) is not dtype or len(shape) != dimensions:
        got = f"{kind.lower()} {tuple(shape)}" if kind else "nothing"
        raise _wrong(name, got, f"{np.dtype(dtype).name} with {dimensions} dimensions")
    size = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        # A copy, because gRPC's own bytes cannot be written to.
        return np.frombuffer(content or elsewhere[:size], dtype).reshape(shape).copy()
    except ValueError as error:
        raise _wrong(name, f"{len(content)} bytes", f"{tuple(shape)}") from error


def text(answer: Any, name: str) -> str:
    """Return an output of one BYTES element as text, read as UTF-8.

    Raises:
        SegmenterError: INTERNAL when it is missing or something else.
    """
    kind, _shape, content = _found(answer, name)
    if kind != "BYTES" or element(content[4:]) != content:
        raise _wrong(name, kind or "nothing", "one BYTES element")
    return content[4:].decode("utf-8", "replace")


def _found(answer: Any, name: str) -> tuple[str, list[int], bytes]:
    """Return an output's Triton type, shape and contents, which are empty for one in shared memory."""
    contents = dict(enumerate(answer.raw_output_contents))
    for place, tensor in enumerate(answer.outputs):
        if tensor.name == name:
            return tensor.datatype, list(tensor.shape), contents.get(place, b"")
    return "", [], b""


def _wrong(name: str, got: str, expected: str) -> SegmenterError:
    return SegmenterError(
        f"{name}: got {got} from the server, expected {expected}; is it a segmenter of this project?", INTERNAL
    )
