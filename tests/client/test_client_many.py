"""Many images in flight: bounded, in order or not, over one connection."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from fake_triton import FakeTriton, MaskOf, right_half
from waiting import until

from slime_client import Answer, Segmenter, SegmenterError, aio


def pictures(number: int) -> list[npt.NDArray[np.uint8]]:
    """Each as wide as its place, counted from 1."""
    return [np.zeros((2, place + 1, 3), np.uint8) for place in range(number)]


def widths(answers: list[Answer]) -> list[int]:
    return [answer.mask.array.shape[1] for answer in answers]


def first_is_slow(server: FakeTriton, number: int) -> MaskOf:
    """Return an answer to pictures that waits, for the first one, until `number` of them have come."""

    def answer(data: bytes) -> npt.NDArray[np.uint8]:
        mask = right_half(data)
        if mask.shape[1] == 1:
            until(lambda: len(server.received) >= number, f"{number} pictures")
        return mask

    return answer


def several(server: FakeTriton, number: int, concurrency: int, ordered: bool, asynchronous: bool) -> list[Answer]:
    async def whole() -> list[Answer]:
        async with aio.Segmenter(server.url, "car") as car:
            answers = car.segment_many(pictures(number), concurrency=concurrency, ordered=ordered)
            return [answer async for answer in answers]

    if asynchronous:
        return asyncio.run(whole())
    with Segmenter(server.url, "car") as car:
        return list(car.segment_many(pictures(number), concurrency=concurrency, ordered=ordered))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_in_order(server: FakeTriton, asynchronous: bool) -> None:
    server.mask_of = first_is_slow(server, 4)
    assert widths(several(server, 12, 4, True, asynchronous)) == list(range(1, 13))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_as_they_come(server: FakeTriton, asynchronous: bool) -> None:
    server.mask_of = first_is_slow(server, 6)
    came = widths(several(server, 6, 3, False, asynchronous))
    assert sorted(came) == list(range(1, 7))
    # Three others had to be taken before the sixth was sent.
    assert came.index(1) >= 3


@pytest.mark.parametrize("asynchronous", [False, True])
def test_64_in_flight_and_never_more_over_one_connection(server: FakeTriton, asynchronous: bool) -> None:
    together = threading.Barrier(64)

    def first_64_wait_for_each_other(data: bytes) -> npt.NDArray[np.uint8]:
        mask = right_half(data)
        if mask.shape[1] <= 64:
            together.wait(timeout=20)
        return mask

    server.mask_of = first_64_wait_for_each_other
    assert widths(several(server, 100, 64, True, asynchronous)) == list(range(1, 101))
    assert server.most_flying == 64
    assert len(server.peers) == 1


def test_images_are_read_as_they_are_needed(car: Segmenter) -> None:
    read = []

    def reading() -> Iterator[npt.NDArray[np.uint8]]:
        for picture in pictures(100):
            read.append(picture.shape[1])
            yield picture

    answers = car.segment_many(reading(), concurrency=4)
    assert [next(answers).mask.array.shape[1] for _ in range(3)] == [1, 2, 3]
    assert max(read) <= 7
    answers.close()  # type: ignore[attr-defined]


def test_a_bad_image_is_one_answer(car: Segmenter, photo: Path) -> None:
    images = [photo, b"no picture", "nowhere.jpg", photo]
    answers = list(car.segment_many(images))
    assert [answer.image for answer in answers] == images
    assert [answer.error and answer.error.code for answer in answers] == [
        None,
        "INVALID_ARGUMENT",
        "INVALID_ARGUMENT",
        None,
    ]
    assert answers[3].mask.array.any()
    with pytest.raises(SegmenterError, match="no such file"):
        _ = answers[2].mask


@pytest.mark.parametrize("asynchronous", [False, True])
def test_stopping_early_cancels_the_rest(server: FakeTriton, asynchronous: bool) -> None:
    def slow_but_first(data: bytes) -> npt.NDArray[np.uint8]:
        server.delay_s = 20
        return right_half(data)

    server.mask_of = slow_but_first

    async def take_one() -> None:
        async with aio.Segmenter(server.url, "car") as car:
            async for _ in car.segment_many(pictures(9), concurrency=1):
                break

    begun = time.monotonic()
    if asynchronous:
        asyncio.run(take_one())
    else:
        with Segmenter(server.url, "car") as car:
            for _ in car.segment_many(pictures(9), concurrency=1):
                break
    assert time.monotonic() - begun < 10
    assert server.received


@pytest.mark.parametrize("concurrency", [0, 257, 2.0])
def test_a_bad_concurrency(car: Segmenter, concurrency: int) -> None:
    with pytest.raises(SegmenterError, match="concurrency: got"):
        car.segment_many([], concurrency=concurrency)
