"""Many images in flight, never more than a window of them: answers in order or as they come, in threads or asyncio."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from concurrent import futures
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from slime_client.errors import INVALID_ARGUMENT, SegmenterError
from slime_client.images import ImageLike
from slime_client.mask import Mask

MAX_CONCURRENCY = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """What became of one of many images.

    Attributes:
        image: as it was given.
        error: why there is no mask, or None.
    """

    image: ImageLike
    error: SegmenterError | None
    _mask: Mask | None

    @property
    def mask(self) -> Mask:
        """The mask.

        Raises:
            SegmenterError: `error`, where there is one.
        """
        if self._mask is None:
            raise self.error or AssertionError("an answer has a mask or an error")
        return self._mask


def windowed(
    submit: Callable[[ImageLike], "Future[Mask]"], images: Iterable[ImageLike], concurrency: int, ordered: bool
) -> Iterator[Answer]:
    """Answers from threads; what is in flight when the caller stops is cancelled."""
    flying: dict[Future[Mask], ImageLike] = {}

    def landed() -> Answer:
        first = next(iter(flying))
        wanted = [first] if ordered else list(flying)
        done = futures.wait(wanted, return_when=futures.FIRST_COMPLETED).done
        future = next(future for future in wanted if future in done)
        return _answer(flying.pop(future), future)

    try:
        for image in images:
            if len(flying) >= concurrency:
                yield landed()
            flying[submit(image)] = image
        while flying:
            yield landed()
    finally:
        for future in flying:
            future.cancel()


async def windowed_async(
    ask: Callable[[ImageLike], Coroutine[Any, Any, Mask]],
    images: Iterable[ImageLike],
    concurrency: int,
    ordered: bool,
) -> AsyncIterator[Answer]:
    """Answers from tasks; what is in flight when the caller stops is cancelled."""
    flying: dict[asyncio.Task[Mask], ImageLike] = {}

    async def landed() -> Answer:
        first = next(iter(flying))
        wanted = [first] if ordered else list(flying)
        done, _ = await asyncio.wait(wanted, return_when=asyncio.FIRST_COMPLETED)
        task = next(task for task in wanted if task in done)
        return _answer(flying.pop(task), task)

    try:
        for image in images:
            if len(flying) >= concurrency:
                yield await landed()
            flying[asyncio.create_task(ask(image))] = image
        while flying:
            yield await landed()
    finally:
        for task in flying:
            task.cancel()
        await asyncio.gather(*flying, return_exceptions=True)


def checked_concurrency(number: int) -> int:
    """The number of images in flight.

    Raises:
        SegmenterError: INVALID_ARGUMENT when it is none from 1 to 256.
    """
    if not isinstance(number, int) or not 1 <= number <= MAX_CONCURRENCY:
        raise SegmenterError(f"concurrency: got {number!r}, expected 1 to {MAX_CONCURRENCY}", INVALID_ARGUMENT)
    return number


def _answer(image: ImageLike, done: "Future[Mask] | asyncio.Task[Mask]") -> Answer:
    try:
        return Answer(image=image, error=None, _mask=done.result())
    except SegmenterError as error:
        return Answer(image=image, error=error, _mask=None)
