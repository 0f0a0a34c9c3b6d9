"""The asyncio segmenter, and cancelling with either: one core, so what the other tests show is not shown again."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError
from pathlib import Path
from typing import TypeVar

import grpc  # type: ignore[import-untyped]
import numpy as np
import pytest
from fake_triton import FakeTriton, Refusal
from waiting import until, until_async

from slime_client import Retry, Segmenter, SegmenterError, aio, segmenters

Result = TypeVar("Result")


def with_car(server: FakeTriton, use: Callable[[aio.Segmenter], Awaitable[Result]], **options: object) -> Result:
    async def whole() -> Result:
        async with aio.Segmenter(server.url, "car", **options) as car:  # type: ignore[arg-type]
            return await use(car)

    return asyncio.run(whole())


def test_a_mask_as_from_the_blocking_one(server: FakeTriton, car: Segmenter, photo: Path) -> None:
    mask = with_car(server, lambda segmenter: segmenter.segment(photo, scores=True))
    expected = car.segment(photo, scores=True)
    np.testing.assert_array_equal(mask.array, expected.array)
    np.testing.assert_array_equal(mask.scores, expected.scores)
    assert mask.parts == expected.parts


def test_errors_are_the_same(server: FakeTriton) -> None:
    async def fail(car: aio.Segmenter) -> None:
        with pytest.raises(SegmenterError, match="refused by segmenter 'car'") as caught:
            await car.segment(b"no picture")
        assert caught.value.code == "INVALID_ARGUMENT"
        with pytest.raises(SegmenterError, match="no such file"):
            await car.segment("nowhere.jpg")

    with_car(server, fail)
    with pytest.raises(SegmenterError, match="it serves: car") as caught:
        asyncio.run(aio.Segmenter(server.url, "cart").open())
    assert caught.value.code == "NOT_FOUND"


def test_what_there_is(server: FakeTriton) -> None:
    assert asyncio.run(aio.segmenters(server.url)) == segmenters(server.url)
    with pytest.raises(SegmenterError, match="without a scheme"):
        asyncio.run(aio.segmenters("grpc://nowhere"))


def test_unopened_and_closed(server: FakeTriton, photo: Path) -> None:
    async def whole() -> None:
        car = aio.Segmenter(server.url, "car")
        with pytest.raises(SegmenterError, match="not connected yet"):
            await car.segment(photo)
        await car.open()
        assert await car.live()
        await car.close()
        await car.close()
        assert not await car.live()
        with pytest.raises(SegmenterError, match="closed; make a new Segmenter"):
            await car.segment(photo)

    asyncio.run(whole())


def test_cancelling_a_task_reaches_the_server(server: FakeTriton, photo: Path) -> None:
    async def cancel(car: aio.Segmenter) -> None:
        server.delay_s = 20
        task = asyncio.create_task(car.segment(photo))
        await until_async(lambda: server.flying, "the call reaches the server")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with_car(server, cancel)
    assert server.cancelled.wait(5)


def test_a_timeout_around_the_call_reaches_the_server(server: FakeTriton, photo: Path) -> None:
    async def hurry(car: aio.Segmenter) -> None:
        server.delay_s = 20
        task = asyncio.create_task(car.segment(photo))
        await until_async(lambda: server.flying, "the call reaches the server")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(task, 0.1)

    with_car(server, hurry)
    assert server.cancelled.wait(5)


def test_the_loop_is_never_blocked(server: FakeTriton, photo: Path) -> None:
    async def beat(car: aio.Segmenter) -> int:
        server.delay_s = 0.3
        task, beats = asyncio.create_task(car.segment(photo)), 0
        while not task.done():
            await asyncio.sleep(0.005)
            beats += 1
        return beats

    assert with_car(server, beat) > 5


def test_cancelling_a_future_reaches_the_server(server: FakeTriton, car: Segmenter, photo: Path) -> None:
    server.delay_s = 20
    future = car.submit(photo)
    until(lambda: server.flying, "the call reaches the server")
    assert future.cancel()
    assert server.cancelled.wait(5)
    with pytest.raises(CancelledError):
        future.result()
    server.delay_s = 0
    assert car.submit(photo).result(timeout=10).array.any()


def test_cancelling_ends_a_pause_between_tries(server: FakeTriton, photo: Path) -> None:
    refused = threading.Event()

    def busy(data: bytes) -> None:
        refused.set()
        raise Refusal(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")

    server.mask_of = busy  # type: ignore[assignment]
    with Segmenter(server.url, "car", retry=Retry(first=25, longest=25, chance=lambda: 0.99)) as car:
        future = car.submit(photo)
        assert refused.wait(5)
        future.cancel()
        begun = time.monotonic()
    assert time.monotonic() - begun < 5
    assert len(server.received) == 1


def test_closing_ends_what_is_in_flight(server: FakeTriton, photo: Path) -> None:
    with Segmenter(server.url, "car") as car:
        server.delay_s = 20
        future = car.submit(photo)
        until(lambda: server.flying, "the call reaches the server")
    with pytest.raises(SegmenterError) as caught:
        future.result(timeout=5)
    assert caught.value.code == "CANCELLED"
    assert server.cancelled.wait(5)
