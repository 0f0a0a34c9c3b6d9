"""A served segmenter, as an object that blocks: takes the core's steps in the calling thread, or in one of its own."""

import functools
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, TypeVar

import grpc
from tritonclient.grpc import service_pb2_grpc

from slime_client.access import OPTIONS
from slime_client.core import LIVE_TIMEOUT_S, SegmenterCore
from slime_client.errors import CANCELLED, SegmenterError
from slime_client.images import ImageLike
from slime_client.many import MAX_CONCURRENCY, Answer, checked_concurrency, windowed
from slime_client.mask import Mask
from slime_client.steps import Call, Pause, Steps, Work

Result = TypeVar("Result")


class Segmenter(SegmenterCore, AbstractContextManager["Segmenter", None]):
    __doc__ = f"""{SegmenterCore.__doc__}
    Connecting asks the server for the segmenter's parts and colours, so a wrong address or name fails at once. Any
    number of threads may use one object; all calls share one connection.
    """

    def _begin(self) -> None:
        secure = self._access.secure
        url = self._server.url
        self._channel = (
            grpc.secure_channel(url, self._access.credentials(), OPTIONS)
            if secure
            else grpc.insecure_channel(url, OPTIONS)
        )
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._threads = ThreadPoolExecutor(MAX_CONCURRENCY, thread_name_prefix="slime-client")
        self._running: set[_Cancellation] = set()
        try:
            self._run(self._connecting())
        except BaseException:
            self.close()
            raise

    def segment(self, image: ImageLike, *, scores: bool = False, timeout: float | None = None) -> Mask:
        """Ask for one image's mask.

        Args:
            image: a path or bytes (JPEG, PNG, WebP, sent as they are), a uint8 RGB array (H, W, 3) or a PIL image.
            scores: ask for the parts' score maps too.
            timeout: seconds for the whole call, instead of the segmenter's.

        Returns:
            A mask of the image's size as seen (EXIF orientation applied, for a PIL image too).

        Raises:
            SegmenterError: INVALID_ARGUMENT for a bad image, UNAVAILABLE, DEADLINE_EXCEEDED, NOT_FOUND, …
        """
        return self._run(self._segmenting(image, scores=scores, timeout=timeout))

    def submit(self, image: ImageLike, *, scores: bool = False, timeout: float | None = None) -> "Future[Mask]":
        """`segment` in a thread of its own. Cancelling the future ends the call, on the server too."""
        future: Future[Mask] = Future()
        cancellation = _Cancellation()
        future.add_done_callback(lambda done: cancellation.cancel() if done.cancelled() else None)
        steps = self._segmenting(image, scores=scores, timeout=timeout)
        self._threads.submit(self._fulfil, future, steps, cancellation)
        return future

    def segment_many(
        self,
        images: Iterable[ImageLike],
        *,
        concurrency: int = 8,
        ordered: bool = True,
        scores: bool = False,
        timeout: float | None = None,
    ) -> Iterator[Answer]:
        """Masks of many images, several in flight.

        Args:
            images: read as they are needed: never more than `concurrency` ahead of what was taken.
            concurrency: how many are in flight at most.
            ordered: in the images' order; otherwise as they come.
            scores: ask for the parts' score maps too.
            timeout: seconds for each image.

        Yields:
            One answer for each image. Stopping early cancels what is in flight.
        """
        ask = functools.partial(self.submit, scores=scores, timeout=timeout)
        return windowed(ask, images, checked_concurrency(concurrency), ordered)

    def live(self, *, timeout: float = LIVE_TIMEOUT_S) -> bool:
        """Whether the server answers at all; never raises for a server that does not."""
        return not self._closed and self._run(self._asking_live(timeout))

    def close(self) -> None:
        """Cancel what is in flight and close the connection; a second time does nothing."""
        if self._closed:
            return
        self._closed = True
        for cancellation in list(self._running):
            cancellation.cancel()
        self._threads.shutdown(wait=True)
        self._run(self._closing())
        self._channel.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _fulfil(self, future: "Future[Mask]", steps: Steps[Mask], cancellation: "_Cancellation") -> None:
        mask, failure = None, None
        try:
            mask = self._run(steps, cancellation)
        except BaseException as error:  # All of them are whoever's who waits for the future.
            failure = error
        if not future.set_running_or_notify_cancel():
            return
        if mask is None:
            future.set_exception(failure)
        else:
            future.set_result(mask)

    def _run(self, steps: Steps[Result], cancellation: "_Cancellation | None" = None) -> Result:
        cancellation = cancellation or _Cancellation()
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

    def _perform(self, step: Call | Pause | Work, cancellation: "_Cancellation") -> Any:
        if isinstance(step, Call):
            method = getattr(self._stub, step.method)
            return cancellation.wait(method.future(step.request, timeout=step.timeout, metadata=self._metadata))
        if isinstance(step, Pause):
            return cancellation.sleep(step.seconds)
        return step.function()


class _Cancellation:
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
