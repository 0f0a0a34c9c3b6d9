"""A served segmenter, as an object that blocks: takes the core's steps in the calling thread, or in one of its own."""

import os
import threading
from collections.abc import Iterable, Iterator
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

import grpc
from tritonclient.grpc import service_pb2_grpc

from slime_client.access import Access
from slime_client.core import DEFAULT_TIMEOUT_S, LIVE_TIMEOUT_S, MAX_CONCURRENCY, Answer, Scores, SegmenterCore, listing
from slime_client.errors import CANCELLED, SegmenterError
from slime_client.images import ImageLike
from slime_client.lookup import Description
from slime_client.mask import Mask
from slime_client.protocol import Call, Pause, Retry, Steps, Work
from slime_client.video.flight import FRESHEST_CONCURRENCY, frames
from slime_client.video.frames import Following, Frame, Track
from slime_client.video.reading import DEFAULT_RATE
from slime_client.video.smoothing import Smooth

Result = TypeVar("Result")


class Connection:
    """One gRPC connection to the server at `url` (host:port), for any number of threads.

    Raises:
        SegmenterError: INVALID_ARGUMENT for files of `access` that cannot be used.
    """

    def __init__(self, url: str, access: Access) -> None:
        self._metadata = access.metadata(url)
        self._channel = access.channel(grpc, url)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._running: set[Cancellation] = set()

    def ask(self, method: str, request: Any, timeout: float) -> Any:
        """Send a protobuf message to `method` of Triton's gRPC service, once, and return the answer.

        Raises:
            grpc.RpcError: what the server or the connection ended the call with.
        """
        return getattr(self._stub, method)(request, timeout=timeout, metadata=self._metadata)

    def run(self, steps: Steps[Result], cancellation: "Cancellation | None" = None) -> Result:
        """Take the steps to their end, and return what they return; what they raise is raised.

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
        """End the call that waits now, or the next one that would."""
        self._wanted.set()
        if self._call is not None:
            self._call.cancel()

    def wait(self, call: Any) -> Any:
        """Return the result of `call`, a grpc.Future. Raises SegmenterError (CANCELLED) when it was cancelled."""
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
        """Wait. Raises SegmenterError (CANCELLED) when cancelled meanwhile."""
        if self._wanted.wait(seconds):
            raise SegmenterError("cancelled before it was tried again", CANCELLED)


class Segmenter(SegmenterCore, AbstractContextManager["Segmenter", None]):
    __doc__ = f"""{SegmenterCore.__doc__}
    Connecting asks the server for the segmenter's parts and colours, so a wrong address or name fails at once. Any
    number of threads may use one object; all calls share one connection.
    """

    def _begin(self) -> None:
        self._connection = Connection(self._server.url, self._access)
        self._threads = ThreadPoolExecutor(MAX_CONCURRENCY, thread_name_prefix="slime-client")
        try:
            self._connection.run(self._connecting())
        except BaseException:
            self.close()
            raise

    def segment(self, image: ImageLike, *, scores: Scores = False, timeout: float | None = None) -> Mask:
        """Return one image's mask.

        Args:
            image: a path or bytes (JPEG, PNG, WebP, sent as they are), a uint8 RGB array (H, W, 3) or a PIL image.
            scores: ask for the parts' score maps too; "sharpened" for those that the mask is the argmax of, once
                enlarged to its size; these may be averaged over the frames of a video.
            timeout: seconds for the whole call, instead of the segmenter's.

        Returns:
            A mask of the image's size as seen (EXIF orientation applied, for a PIL image too).

        Raises:
            SegmenterError: INVALID_ARGUMENT for a bad image, UNAVAILABLE, DEADLINE_EXCEEDED, NOT_FOUND, …
        """
        return self._connection.run(self._segmenting(image, scores=scores, timeout=timeout))

    def submit(self, image: ImageLike, *, scores: Scores = False, timeout: float | None = None) -> "Future[Mask]":
        """Do `segment` in a thread of its own. Cancelling the future ends the call, on the server too."""
        future: Future[Mask] = Future()
        cancellation = Cancellation()
        future.add_done_callback(lambda done: cancellation.cancel() if done.cancelled() else None)
        steps = self._segmenting(image, scores=scores, timeout=timeout)
        try:
            self._threads.submit(self._fulfil, future, steps, cancellation)
        except RuntimeError as error:  # Of a pool that takes no more.
            raise self._shut() from error
        return future

    def segment_many(
        self,
        images: Iterable[ImageLike],
        *,
        concurrency: int | None = None,
        ordered: bool = True,
        scores: Scores = False,
        timeout: float | None = None,
    ) -> Iterator[Answer]:
        """Yield the masks of many images, several in flight: one answer for each. Stopping early cancels the rest.

        Args:
            images: read as they are needed: never more than `concurrency` ahead of what was taken.
            concurrency: how many are in flight at most; None for the property `concurrency`.
            ordered: answers come in the images' order; otherwise as they are ready.
            scores: ask for the parts' score maps too.
            timeout: seconds for each image.
        """
        flying = self.checked_concurrency(self.concurrency if concurrency is None else concurrency)
        return self._window(images, flying, ordered, scores=scores, timeout=timeout)

    def video(
        self,
        source: str | os.PathLike[str],
        *,
        smooth: Smooth = "none",
        stride: int = 1,
        skip_still: bool = False,
        freshest: bool = False,
        max_staleness: float = 0.5,
        fps: float = DEFAULT_RATE,
        concurrency: int | None = None,
        timeout: float | None = None,
    ) -> Iterator[Frame]:
        """Yield the frames of a clip with their masks, in order, several in flight. Stopping early gives up the rest.

        Args:
            source: a video file, a folder of frames, a file of several pages, a camera such as /dev/video0, or a URL.
            smooth: "none" gives each frame the mask of a single image; "mean" and "flow" make masks consistent.
            stride: every so many-th picture is segmented; the others are left out.
            skip_still: a picture that hardly differs from the last one that was sent gets the answer to that.
            freshest: of a camera or stream, the newest picture is segmented, and those in between are left out.
            max_staleness: with `freshest`, a picture that has waited for more seconds is left out too.
            fps: pictures a second of folders and pages, which have no times of their own.
            concurrency: how many are in flight at most; None for the property `concurrency`, or 2 with `freshest`.
            timeout: seconds for each frame.

        Raises:
            SegmenterError: INVALID_ARGUMENT for what cannot be read; FAILED_PRECONDITION where PyAV (the extra `video`)
                is missing; and what a frame's request ended with, naming the frame.
        """
        how = Following(
            smooth=smooth, stride=stride, skip_still=skip_still, freshest=freshest, max_staleness=max_staleness
        )
        usual = FRESHEST_CONCURRENCY if freshest else self.concurrency
        flying = self.checked_concurrency(usual if concurrency is None else concurrency)
        submit = partial(self.submit, scores=how.scores, timeout=timeout)
        return frames(submit, how.opened(source, fps), Track(how), how, concurrency=flying)

    def live(self, *, timeout: float = LIVE_TIMEOUT_S) -> bool:
        """Return whether the server answers at all; never raises for a server that does not."""
        return not self._closed and self._connection.run(self._asking_live(timeout))

    def close(self) -> None:
        """Cancel what is in flight and close the connection; a second time does nothing."""
        if self._closed:
            return
        self._closed = True
        self._connection.cancel_all()
        self._threads.shutdown(wait=True)
        self._connection.run(self._closing())
        self._connection.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _window(self, images: Iterable[ImageLike], concurrency: int, ordered: bool, **options: Any) -> Iterator[Answer]:
        flying: dict[Future[Mask], ImageLike] = {}

        def landed() -> Answer:
            wanted = [next(iter(flying))] if ordered else list(flying)
            done = futures.wait(wanted, return_when=futures.FIRST_COMPLETED).done
            future = next(future for future in wanted if future in done)
            return Answer.of(flying.pop(future), future)

        try:
            for image in images:
                if len(flying) >= concurrency:
                    yield landed()
                flying[self.submit(image, **options)] = image
            while flying:
                yield landed()
        finally:
            for future in flying:
                future.cancel()

    def _fulfil(self, future: "Future[Mask]", steps: Steps[Mask], cancellation: Cancellation) -> None:
        mask, failure = None, None
        try:
            mask = self._connection.run(steps, cancellation)
        except BaseException as error:  # Whoever waits for the future is told, whatever it is.
            failure = error
        if not future.set_running_or_notify_cancel():
            return
        if mask is None:
            future.set_exception(failure)
        else:
            future.set_result(mask)


def segmenters(
    url: str, *, timeout: float = DEFAULT_TIMEOUT_S, access: Access | None = None, retry: Retry | None = None
) -> list[Description]:
    """Return all segmenters of a server that can be asked, of either form, by name.

    Raises:
        SegmenterError: UNAUTHENTICATED where the server lists them only for those who have its key; UNAVAILABLE, …
    """
    steps = listing(url, timeout, retry)
    connection = Connection(url, access or Access())
    try:
        with (access or Access()).explaining(url):
            return connection.run(steps)
    finally:
        connection.close()
