"""A served segmenter for asyncio: takes the core's steps in the event loop, and never blocks it.

async with Segmenter("localhost:8001", "car") as segmenter:
    mask = await segmenter.segment("photo.jpg")
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, TypeVar

import grpc.aio
from tritonclient.grpc import service_pb2_grpc

from slime_client.access import Access
from slime_client.core import DEFAULT_TIMEOUT_S, LIVE_TIMEOUT_S, Answer, Scores, SegmenterCore, listing
from slime_client.images import ImageLike
from slime_client.lookup import Description
from slime_client.mask import Mask
from slime_client.protocol import Call, Pause, Retry, Steps, Work
from slime_client.video.flight import FRESHEST_CONCURRENCY, Ahead, Window
from slime_client.video.frames import Following, Frame, Track
from slime_client.video.reading import DEFAULT_RATE
from slime_client.video.smoothing import Smooth

Result = TypeVar("Result")


class Segmenter(SegmenterCore, AbstractAsyncContextManager["Segmenter", None]):
    __doc__ = f"""{SegmenterCore.__doc__}
    Entering it connects and asks the server for the segmenter's parts and colours, so a wrong address or name fails
    there. Cancelling a task cancels its call, on the server too.
    """

    def _begin(self) -> None:
        # Made when it is entered, because a channel belongs to the loop it was made in.
        self._connection: _Connection | None = None

    async def __aenter__(self) -> "Segmenter":
        await self.open()
        return self

    async def open(self) -> None:
        """Connect, without `async with`; `close` ends it.

        Raises:
            SegmenterError: NOT_FOUND, UNAVAILABLE, …
        """
        self._connection = _Connection(self._server.url, self._access)
        try:
            await self._run(self._connecting())
        except BaseException:
            await self.close()
            raise

    async def segment(self, image: ImageLike, *, scores: Scores = False, timeout: float | None = None) -> Mask:
        """Return one image's mask; see `slime_client.Segmenter.segment`."""
        return await self._run(self._segmenting(image, scores=scores, timeout=timeout))

    def segment_many(
        self,
        images: Iterable[ImageLike],
        *,
        concurrency: int | None = None,
        ordered: bool = True,
        scores: Scores = False,
        timeout: float | None = None,
    ) -> AsyncIterator[Answer]:
        """Yield the masks of many images, several in flight; see `slime_client.Segmenter.segment_many`."""
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
    ) -> AsyncIterator[Frame]:
        """Yield the frames of a clip with their masks; see `slime_client.Segmenter.video`."""
        how = Following(
            smooth=smooth, stride=stride, skip_still=skip_still, freshest=freshest, max_staleness=max_staleness
        )
        usual = FRESHEST_CONCURRENCY if freshest else self.concurrency
        flying = self.checked_concurrency(usual if concurrency is None else concurrency)
        return self._frames(how, source, fps, flying, timeout)

    async def live(self, *, timeout: float = LIVE_TIMEOUT_S) -> bool:
        """Return whether the server answers at all; never raises for a server that does not."""
        return not self._closed and await self._run(self._asking_live(timeout))

    async def close(self) -> None:
        """Close the connection, cancelling what is in flight; a second time does nothing."""
        if self._closed or self._connection is None:
            return
        self._closed = True
        await self._run(self._closing())
        await self._connection.close()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _window(
        self, images: Iterable[ImageLike], concurrency: int, ordered: bool, **options: Any
    ) -> AsyncIterator[Answer]:
        flying: dict[asyncio.Task[Mask], ImageLike] = {}

        async def landed() -> Answer:
            wanted = [next(iter(flying))] if ordered else list(flying)
            done, _ = await asyncio.wait(wanted, return_when=asyncio.FIRST_COMPLETED)
            task = next(task for task in wanted if task in done)
            return Answer.of(flying.pop(task), task)

        try:
            for image in images:
                if len(flying) >= concurrency:
                    yield await landed()
                flying[asyncio.create_task(self.segment(image, **options))] = image
            while flying:
                yield await landed()
        finally:
            for task in flying:
                task.cancel()
            await asyncio.gather(*flying, return_exceptions=True)

    async def _frames(
        self, how: Following, source: str | os.PathLike[str], fps: float, concurrency: int, timeout: float | None
    ) -> AsyncIterator[Frame]:
        changed, loop = asyncio.Event(), asyncio.get_running_loop()
        clip = await asyncio.to_thread(how.opened, source, fps)
        ahead = Ahead(clip.read(how.stride), how, lambda: loop.call_soon_threadsafe(changed.set))
        window: Window[asyncio.Task[Mask]] = Window(ahead, Track(how), concurrency)
        try:
            while not window.over:
                changed.clear()
                while (picture := window.to_send()) is not None:
                    task = asyncio.create_task(self.segment(picture.image, scores=how.scores, timeout=timeout))
                    task.add_done_callback(lambda _: changed.set())
                    window.sent(picture, task)
                if (made := window.landed()) is not None:
                    for frame in await asyncio.to_thread(made):
                        yield frame
                elif not window.over:
                    await changed.wait()
        finally:
            await asyncio.gather(*window.give_up(), return_exceptions=True)
            await asyncio.to_thread(ahead.close)

    async def _run(self, steps: Steps[Result]) -> Result:
        if self._connection is None:
            raise self._unconnected()
        return await self._connection.run(steps)


async def segmenters(
    url: str, *, timeout: float = DEFAULT_TIMEOUT_S, access: Access | None = None, retry: Retry | None = None
) -> list[Description]:
    """Return all segmenters of a server that can be asked, of either form, by name; see `slime_client.segmenters`."""
    steps = listing(url, timeout, retry)
    connection = _Connection(url, access or Access())
    try:
        with (access or Access()).explaining(url):
            return await connection.run(steps)
    finally:
        await connection.close()


class _Connection:
    """One gRPC connection of the event loop that runs while it is made, for any number of tasks."""

    def __init__(self, url: str, access: Access) -> None:
        self._metadata = access.metadata(url)
        self._channel = access.channel(grpc.aio, url)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def close(self) -> None:
        await self._channel.close()

    async def run(self, steps: Steps[Result]) -> Result:
        try:
            step = next(steps)
            while True:
                try:
                    answer = await self._perform(step)
                except Exception as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as end:
            result: Result = end.value
            return result
        finally:
            steps.close()

    async def _perform(self, step: Call | Pause | Work) -> Any:
        if isinstance(step, Call):
            method = getattr(self._stub, step.method)
            return await method(step.request, timeout=step.timeout, metadata=self._metadata)
        if isinstance(step, Pause):
            return await asyncio.sleep(step.seconds)
        return await asyncio.to_thread(step.function)
