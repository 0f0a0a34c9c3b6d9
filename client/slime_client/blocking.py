"""Taking the core's steps in the calling thread: sends, waits, and stops waiting when another thread says so."""

import threading
from typing import Any, TypeVar

import grpc
from tritonclient.grpc import service_pb2_grpc

from slime_client.access import Access
from slime_client.errors import CANCELLED, SegmenterError
from slime_client.steps import Call, Pause, Steps, Work

Result = TypeVar("Result")


class Connection:
    """One gRPC connection, for any number of threads.

    Args:
        url: host:port.
        access: TLS, certificates and key.

    Raises:
        SegmenterError: INVALID_ARGUMENT for files of `access` that cannot be used.
    """

    def __init__(self, url: str, access: Access) -> None:
        self._metadata = access.metadata(url)
        self._channel = access.channel(grpc, url)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._running: set[Cancellation] = set()

    def run(self, steps: Steps[Result], cancellation: "Cancellation | None" = None) -> Result:
        """Take the steps to their end; what they raise is raised.

        Raises:
            SegmenterError: CANCELLED when `cancellation`, or `cancel_all`, ended them.
        """
        cancellation = cancellation or Cancellation()
        self._running.add(cancellation)
        try:
            step = next(steps)
            while True:
                try:
                    answer = self._perform(step, cancellation)
                except Exception as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as end:
            result: Result = end.value
            return result
        finally:
            steps.close()
            self._running.discard(cancellation)

    def ask(self, method: str, request: Any, timeout: float) -> Any:
        """Send one request of Triton's gRPC service, once, and return its answer.

        Args:
            method: name of the call, such as "RepositoryIndex".
            request: its protobuf message.
            timeout: seconds.

        Raises:
            grpc.RpcError: what the server or the connection ended the call with.
        """
        return getattr(self._stub, method)(request, timeout=timeout, metadata=self._metadata)

    def cancel_all(self) -> None:
        """End what runs in other threads."""
        for cancellation in list(self._running):
            cancellation.cancel()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def _perform(self, step: Call | Pause | Work, cancellation: "Cancellation") -> Any:
        if isinstance(step, Call):
            method = getattr(self._stub, step.method)
            return cancellation.wait(method.future(step.request, timeout=step.timeout, metadata=self._metadata))
        if isinstance(step, Pause):
            return cancellation.sleep(step.seconds)
        return step.function()


class Cancellation:
    """Ends whatever a running call waits for, from another thread."""

    def __init__(self) -> None:
        self._wanted = threading.Event()
        self._call: Any = None

    def cancel(self) -> None:
        self._wanted.set()
        if self._call is not None:
            self._call.cancel()

    def wait(self, call: Any) -> Any:
        # Set before it is looked whether to cancel, as `cancel` does it the other way round: one of the two sees it.
        self._call = call
        if self._wanted.is_set():
            call.cancel()
        try:
            return call.result()
        except grpc.FutureCancelledError as error:
            raise SegmenterError("cancelled before the answer came", CANCELLED) from error
        except BaseException:
            # Ctrl-C: nobody waits for the answer any more.
            call.cancel()
            raise

    def sleep(self, seconds: float) -> None:
        if self._wanted.wait(seconds):
            raise SegmenterError("cancelled before it was tried again", CANCELLED)
