"""A served segmenter for asyncio: takes the core's steps in the event loop, and never blocks it.

async with Segmenter("localhost:8001", "car") as segmenter:
    mask = await segmenter.segment("photo.jpg")
"""

import asyncio
import functools
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, TypeVar

import grpc.aio
from tritonclient.grpc import service_pb2_grpc

from slime_client.access import OPTIONS
from slime_client.core import LIVE_TIMEOUT_S, SegmenterCore
from slime_client.images import ImageLike
from slime_client.many import Answer, checked_concurrency, windowed_async
from slime_client.mask import Mask
from slime_client.steps import Call, Pause, Steps, Work

Result = TypeVar("Result")


class Segmenter(SegmenterCore, AbstractAsyncContextManager["Segmenter", None]):
    __doc__ = f"""{SegmenterCore.__doc__}
    Entering it connects and asks the server for the segmenter's parts and colours, so a wrong address or name fails
    there. Cancelling a task cancels its call, on the server too.
    """

    async def __aenter__(self) -> "Segmenter":
        await self.open()
        return self

    async def open(self) -> None:
        """Connect, without `async with`; `close` ends it.

        Raises:
            SegmenterError: NOT_FOUND, UNAVAILABLE, …
        """
        url = self._server.url
        self._metadata = self._access.metadata(url)
        # Made here, because a channel belongs to the loop it was made in.
        self._channel = (
            grpc.aio.secure_channel(url, self._access.credentials(), OPTIONS)
            if self._access.secure
            else grpc.aio.insecure_channel(url, OPTIONS)
        )
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        try:
            await self._run(self._connecting())
        except BaseException:
            await self.close()
            raise

    async def segment(self, image: ImageLike, *, scores: bool = False, timeout: float | None = None) -> Mask:
        """Ask for one image's mask; see `slime_client.Segmenter.segment`."""
        return await self._run(self._segmenting(image, scores=scores, timeout=timeout))

    def segment_many(
        self,
        images: Iterable[ImageLike],
        *,
        concurrency: int = 8,
        ordered: bool = True,
        scores: bool = False,
        timeout: float | None = None,
    ) -> AsyncIterator[Answer]:
        """Masks of many images, several in flight; see `slime_client.Segmenter.segment_many`."""
        ask = functools.partial(self.segment, scores=scores, timeout=timeout)
        return windowed_async(ask, images, checked_concurrency(concurrency), ordered)

    async def live(self, *, timeout: float = LIVE_TIMEOUT_S) -> bool:
        """Whether the server answers at all; never raises for a server that does not."""
        return not self._closed and await self._run(self._asking_live(timeout))

    async def close(self) -> None:
        """Close the connection, cancelling what is in flight; a second time does nothing."""
        if self._closed or not hasattr(self, "_channel"):
            return
        self._closed = True
        await self._run(self._closing())
        await self._channel.close()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, steps: Steps[Result]) -> Result:
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
