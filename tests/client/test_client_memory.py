"""Shared memory: used where it is worth it and allowed, quietly left out elsewhere, and always given back."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from fake_triton import FakeTriton
from waiting import together, until, until_async

from slime_client import Retry, Segmenter, SegmenterError, aio, memory

pytestmark = pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no /dev/shm")
BOTH = ["IMAGE", "MASK"]


@pytest.fixture
def large() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (700, 800, 3), dtype=np.uint8)


def names_in_memory() -> list[str]:
    return [path.name for path in Path("/dev/shm").glob(f"slime-client-{os.getpid()}-*")]


def test_a_large_image_and_its_mask_are_only_pointed_at(
    server: FakeTriton, car: Segmenter, large: npt.NDArray[np.uint8]
) -> None:
    through = car.segment(large, scores=True)
    assert server.pointed == [BOTH]
    assert names_in_memory() == []
    with Segmenter(server.url, "car", shared_memory=False) as plain:
        expected = plain.segment(large, scores=True)
    assert server.pointed == [BOTH, []]
    assert server.received[0] == server.received[1]
    np.testing.assert_array_equal(through.array, expected.array)
    np.testing.assert_array_equal(through.scores, expected.scores)


def test_a_file_is_pointed_at_and_its_mask_sent(
    server: FakeTriton, car: Segmenter, large: npt.NDArray[np.uint8], tmp_path: Path
) -> None:
    from PIL import Image

    Image.fromarray(large).save(tmp_path / "large.png")
    assert car.segment(tmp_path / "large.png").array.shape == (700, 800)
    assert server.pointed == [["IMAGE"]]


def test_a_small_image_is_sent(server: FakeTriton, car: Segmenter, photo: Path) -> None:
    car.segment(photo)
    assert server.pointed == [[]]
    assert not server.regions


def test_a_region_is_used_again(server: FakeTriton, car: Segmenter, large: npt.NDArray[np.uint8]) -> None:
    for _ in range(3):
        car.segment(large)
    assert len(server.regions) == 1
    server.mask_of = together(3)
    assert [answer.error for answer in car.segment_many([large] * 6, concurrency=3)] == [None] * 6
    assert len(server.regions) == 3
    car.close()
    assert not server.regions


def test_masks_in_one_region_do_not_overwrite_each_other(
    server: FakeTriton, car: Segmenter, large: npt.NDArray[np.uint8]
) -> None:
    first = car.segment(large)
    before = first.array.copy()
    server.mask_of = lambda data: np.full((700, 800), 2, np.uint8)
    assert car.segment(large).array.all()
    np.testing.assert_array_equal(first.array, before)


def test_a_refusal_is_quiet_and_asked_for_once(server: FakeTriton, large: npt.NDArray[np.uint8]) -> None:
    server.allows_memory = False
    with Segmenter(server.url, "car") as car:
        for _ in range(3):
            assert car.segment(large).array.any()
    assert server.refused_regions == 1
    assert server.pointed == [[]] * 3
    assert names_in_memory() == []


def test_no_room_means_in_band(
    server: FakeTriton, car: Segmenter, large: npt.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int, start: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    assert car.segment(large).array.any()
    assert server.pointed == [[]]
    assert names_in_memory() == []


def test_more_than_all_regions_may_have_goes_in_band(
    server: FakeTriton, car: Segmenter, large: npt.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_MOST_BYTES", 1 << 23)
    server.mask_of = together(4)
    list(car.segment_many([large] * 4, concurrency=4))
    assert len(server.regions) == 2
    assert sorted(server.pointed) == [[], [], BOTH, BOTH]


def test_a_server_that_was_started_again(server: FakeTriton, car: Segmenter, large: npt.NDArray[np.uint8]) -> None:
    car.segment(large)
    server.regions.clear()
    assert car.segment(large).array.any()
    assert car.segment(large).array.any()
    assert server.pointed == [BOTH, BOTH, [], []]


def test_a_region_of_a_call_that_was_given_up_is_not_lent_again(
    server: FakeTriton, large: npt.NDArray[np.uint8]
) -> None:
    with Segmenter(server.url, "car", retry=Retry(attempts=1)) as car:
        server.delay_s = 20
        with pytest.raises(SegmenterError) as caught:
            car.segment(large, timeout=1.5)
        assert caught.value.code == "DEADLINE_EXCEEDED"
        (first,) = server.regions
        future = car.submit(large)
        until(lambda: server.flying and first not in server.regions, "another region")
        future.cancel()
        server.delay_s = 0
        assert car.segment(large).array.any()
    assert not server.regions
    assert names_in_memory() == []


def test_cancelled_tasks_leave_nothing(server: FakeTriton, large: npt.NDArray[np.uint8]) -> None:
    async def whole() -> None:
        async with aio.Segmenter(server.url, "car") as car:
            server.delay_s = 20
            tasks = [asyncio.create_task(car.segment(large)) for _ in range(3)]
            await until_async(lambda: server.flying == 3, "the calls reach the server")
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            server.delay_s = 0
            assert (await car.segment(large)).array.any()

    asyncio.run(whole())
    assert not server.regions
    assert names_in_memory() == []
