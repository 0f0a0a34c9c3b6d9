"""What the core asks of whoever runs it, one step at a time; the answer is sent back, or the error thrown in.

The core is written once, as generators of these steps. `slime_client.segmenter` takes them in the calling thread,
`slime_client.aio` in an event loop; neither decides anything.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Call:
    """One gRPC call: answered with the response, or with grpc.RpcError.

    Attributes:
        method: of Triton's GRPCInferenceService.
        request: its protobuf message.
        timeout: seconds.
    """

    method: str
    request: Any
    timeout: float


@dataclass(frozen=True)
class Pause:
    """Wait so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Work:
    """Run something that blocks (files, codecs): answered with what it returns or raises."""

    function: Callable[[], Any]


Steps: TypeAlias = Generator[Call | Pause | Work, Any, Result]
