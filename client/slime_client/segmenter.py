"""A served segmenter, as an object that blocks: takes the core's steps in the calling thread, or in one of its own."""

import functools
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from types import TracebackType

from slime_client.access import Access
from slime_client.blocking import Cancellation, Connection
from slime_client.core import DEFAULT_TIMEOUT_S, LIVE_TIMEOUT_S, SegmenterCore, listing
from slime_client.description import Description
from slime_client.images import ImageLike
from slime_client.many import MAX_CONCURRENCY, Answer, checked_concurrency, windowed
from slime_client.mask import Mask
from slime_client.retry import Retry
from slime_client.steps import Steps


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
        return self._connection.run(self._segmenting(image, scores=scores, timeout=timeout))

    def submit(self, image: ImageLike, *, scores: bool = False, timeout: float | None = None) -> "Future[Mask]":
        """`segment` in a thread of its own. Cancelling the future ends the call, on the server too."""
        future: Future[Mask] = Future()
        cancellation = Cancellation()
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

    def _fulfil(self, future: "Future[Mask]", steps: Steps[Mask], cancellation: Cancellation) -> None:
        mask, failure = None, None
        try:
            mask = self._connection.run(steps, cancellation)
        except BaseException as error:  # All of them are whoever's who waits for the future.
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
    """All segmenters of a server that can be asked, of either form, by name.

    Raises:
        SegmenterError: UNAUTHENTICATED where the server tells only who has its key; UNAVAILABLE, …
    """
    steps = listing(url, timeout, retry)
    connection = Connection(url, access or Access())
    try:
        return connection.run(steps)
    finally:
        connection.close()
