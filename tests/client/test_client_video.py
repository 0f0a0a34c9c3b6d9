"""`Segmenter.video`: frames in order, several in flight, in bounded memory, blocking and asyncio."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
import pytest
from clips import Here, clip, number_of, picture, streamed
from fake_triton import FakeTriton, Refusal, right_half
from PIL import Image
from waiting import until

from slime_client import Frame, Segmenter, SegmenterError, aio
from slime_client.video import frames as following
from slime_client.video.flight import frames
from slime_client.video.frames import Following, Track
from slime_client.video.reading import Clip, Picture
from slime_client.video.smoothing import Settings, Smooth, Smoother


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve frames, each as wide as its place + 4."""
    (tmp_path / "frames").mkdir()
    for number in range(12):
        Image.fromarray(picture(number, width=number + 4)).save(tmp_path / "frames" / f"{number:03}.png")
    return tmp_path / "frames"


def several(server: FakeTriton, source: Path, asynchronous: bool, **options: Any) -> list[Frame]:
    async def whole() -> list[Frame]:
        async with aio.Segmenter(server.url, "car") as car:
            return [frame async for frame in car.video(source, **options)]

    if asynchronous:
        return asyncio.run(whole())
    with Segmenter(server.url, "car") as car:
        return list(car.video(source, **options))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_frames_in_order_though_answers_are_not(server: FakeTriton, folder: Path, asynchronous: bool) -> None:
    def first_is_slow(data: bytes) -> np.typing.NDArray[np.uint8]:
        mask = right_half(data)
        if mask.shape[1] == 4:
            until(lambda: len(server.received) >= 4, "four pictures")
        return mask

    server.mask_of = first_is_slow
    found = several(server, folder, asynchronous, concurrency=4)
    assert [frame.index for frame in found] == list(range(12))
    assert [frame.mask.array.shape[1] for frame in found] == [number + 4 for number in range(12)]
    assert [frame.name for frame in found][:2] == ["000", "001"]
    assert [round(frame.time, 3) for frame in found][:3] == [0.0, 0.04, 0.08]
    assert server.most_flying <= 4
    assert found[3].mask.overlay().size == (7, 16) and found[3].image.shape == (16, 7, 3)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_frame_that_fails_is_named(server: FakeTriton, folder: Path, asynchronous: bool) -> None:
    def not_the_sixth(data: bytes) -> np.typing.NDArray[np.uint8]:
        mask = right_half(data)
        if mask.shape[1] == 9:
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "no such picture")
        return mask

    server.mask_of = not_the_sixth
    with pytest.raises(SegmenterError, match=r"frame 5: image array: refused .*no such picture"):
        several(server, folder, asynchronous)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_leaving_early_gives_up_the_rest(server: FakeTriton, folder: Path, asynchronous: bool) -> None:
    def slow_but_first(data: bytes) -> np.typing.NDArray[np.uint8]:
        server.delay_s = 20
        return right_half(data)

    server.mask_of = slow_but_first
    begun = time.monotonic()

    async def take_one() -> None:
        async with aio.Segmenter(server.url, "car") as car:
            async for _ in car.video(folder, concurrency=1):
                break

    if asynchronous:
        asyncio.run(take_one())
    else:
        with Segmenter(server.url, "car") as car:
            next(iter(car.video(folder, concurrency=1)))
    assert time.monotonic() - begun < 15
    until(lambda: not [each for each in threading.enumerate() if each.name == "slime-video"], "the reader's end")


@pytest.mark.parametrize(
    "options",
    [{"smooth": "much"}, {"stride": 0}, {"stride": 1.5}, {"max_staleness": 0}, {"fps": 0}, {"freshest": True}],
)
def test_bad_options(server: FakeTriton, folder: Path, options: dict[str, Any]) -> None:
    with Segmenter(server.url, "car") as car, pytest.raises(SegmenterError) as caught:
        car.video(folder, **options)
    assert caught.value.code == "INVALID_ARGUMENT"


def test_scores_that_may_be_averaged(server: FakeTriton, car: Segmenter, photo: Path) -> None:
    assert car.segment(photo, scores="sharpened").scores is not None
    assert server.outputs[-1] == ["MASK", "SHARPENED"]
    server.lacks_sharpened = True
    with pytest.raises(SegmenterError, match="run slime repository upgrade, or smooth nothing") as caught:
        car.segment(photo, scores="sharpened")
    assert caught.value.code == "FAILED_PRECONDITION"


class Still(Clip):
    """A clip of the pictures with these numbers, large enough for what hardly changes to be told."""

    def __init__(self, numbers: list[int]) -> None:
        super().__init__(source="still")
        self.numbers = numbers

    def read(self, stride: int = 1, start: int = 0) -> Iterator[Picture]:
        for index in range(start, len(self.numbers), stride):
            image = picture(self.numbers[index], 64, 64)
            yield Picture(index=index, time=index / 10, name=f"{index:06}", image=image)


def follow(clip_: Clip, how: Following, segmenter: Here, concurrency: int = 4) -> Iterator[Frame]:
    return frames(partial(segmenter.submit, scores=how.scores), clip_, Track(how), how, concurrency=concurrency)


def test_frames_that_hardly_changed_reuse_the_answer_before() -> None:
    numbers = [1, 1, 1, 9, 9, 1]
    with Here() as car:
        plain = list(follow(Still(numbers), Following(), car))
        assert sorted(car.asked) == sorted(numbers)
        car.asked.clear()
        found = list(follow(Still(numbers), Following(skip_still=True), car))
    assert car.asked == [1, 9, 1]
    assert [frame.reused for frame in found] == [False, True, True, False, True, False]
    for one, other in zip(plain, found, strict=True):
        np.testing.assert_array_equal(one.mask.array, other.mask.array)
        assert other.mask.overlay().tobytes() == one.mask.overlay().tobytes()


def test_a_still_clip_is_asked_for_again_at_each_piece() -> None:
    with Here() as car:
        found = list(follow(Still([3] * 250), Following(skip_still=True), car))
    assert [frame.index for frame in found if not frame.reused] == [0, 100, 200]


def test_slow_changes_are_sent_at_last() -> None:
    """A picture is compared with the one that was sent, not with the one before it."""

    class Slow(Still):
        def read(self, stride: int = 1, start: int = 0) -> Iterator[Picture]:
            for index in range(40):
                yield Picture(index=index, time=0.0, name="", image=np.full((64, 64, 3), 100 + index, np.uint8))

    with Here() as car:
        found = list(follow(Slow([]), Following(skip_still=True), car))
    assert [frame.index for frame in found if not frame.reused] == list(range(0, 40, 3))


class Camera(Clip):
    """A live source whose pictures come when a test says so."""

    def __init__(self) -> None:
        super().__init__(source="camera", live=True)
        self.come = threading.Semaphore(0)
        self.read_so_far = 0
        self.age_s = 0.0

    def show(self, number: int) -> None:
        """Show so many further pictures, and wait until they have been taken from the camera."""
        wanted = self.read_so_far + number
        self.come.release(number)
        until(lambda: self.read_so_far >= wanted, "pictures")

    def read(self, stride: int = 1, start: int = 0) -> Iterator[Picture]:
        for index in range(20):
            assert self.come.acquire(timeout=30)
            arrived = time.monotonic() - self.age_s
            yield Picture(index=index, time=0.0, name="", image=picture(index), arrived=arrived)
            self.read_so_far += 1


def test_of_a_camera_the_freshest() -> None:
    camera, passed = Camera(), threading.Semaphore(0)
    with Here() as car:
        car.before_answer = lambda number: until(lambda: passed.acquire(blocking=False), "leave to answer")
        found = follow(camera, Following(freshest=True, max_staleness=30), car, concurrency=1)
        camera.come.release()
        first = threading.Thread(target=lambda: seen.append(next(found).index))
        seen: list[int] = []
        first.start()
        until(lambda: car.asked == [0], "the first picture")
        camera.show(6)
        passed.release()
        first.join(20)
        passed.release()
        assert [*seen, next(found).index] == [0, camera.read_so_far - 1]
        camera.come.release(20)
        found.close()  # type: ignore[attr-defined]
    assert len(car.asked) == 2


def test_an_answer_does_not_wait_for_the_next_picture() -> None:
    camera = Camera()
    with Here() as car:
        found = follow(camera, Following(), car, concurrency=8)
        camera.come.release()
        assert next(found).index == 0
        camera.come.release(20)


def test_what_has_waited_too_long_is_left_out() -> None:
    camera = Camera()
    camera.age_s = 5.0
    camera.come.release(20)
    with Here() as car:
        assert list(follow(camera, Following(freshest=True, max_staleness=1), car)) == []
    assert car.asked == []


def test_memory_stays_flat_over_thousands_of_frames() -> None:
    """Of all pictures and masks, only those in flight and next to it are kept, in the middle as at the end."""
    images: weakref.WeakSet[Any] = weakref.WeakSet()
    masks: weakref.WeakSet[Any] = weakref.WeakSet()
    most = 0

    class Long(Clip):
        def read(self, stride: int = 1, start: int = 0) -> Iterator[Picture]:
            for index in range(5000):
                kept = Picture(index=index, time=index / 25, name=f"{index:06}", image=picture(index, 8, 8))
                images.add(kept)
                yield kept

    with Here() as car:
        for frame in follow(Long(source="long"), Following(), car):
            masks.add(frame.mask)
            most = max(most, len(images), len(masks))
    assert frame.index == 4999
    assert car.most_flying <= 4
    assert most <= 4 + 8


def test_a_stream_is_followed_to_its_end(server: FakeTriton, tmp_path: Path) -> None:
    pytest.importorskip("av")
    content = clip(tmp_path / "sent.ts", map(picture, range(6)), form="mpegts").read_bytes()
    with streamed(content) as url, Segmenter(server.url, "car") as car:
        found = list(car.video(url))
    assert [number_of(frame.image) for frame in found] == list(range(6))


@pytest.mark.parametrize(("size", "ahead"), [((720, 1280), 24), ((2160, 3840), 8), ((4320, 7680), 0)])
def test_fewer_large_pictures_wait_for_those_that_follow(
    size: tuple[int, int], ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    class Spy(Smoother):
        def __init__(self, how: Smooth, settings: Settings) -> None:
            made.append(settings.ahead)
            super().__init__(how, settings)

    monkeypatch.setattr(following, "Smoother", Spy)
    Track(Following(smooth="flow")).go_on({"shape": np.array([*size, 2])})
    assert made[-1] == ahead


def test_a_change_of_size_begins_the_smoothing_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[list[int]] = []

    class Spy:
        def __init__(self, how: str, settings: object) -> None:
            made.append([])

        def __call__(self, image: np.typing.NDArray[np.uint8], scores: Any) -> list[np.typing.NDArray[np.uint8]]:
            made[-1].append(image.shape[1])
            return [np.zeros(image.shape[:2], np.uint8)]

        def rest(self) -> list[np.typing.NDArray[np.uint8]]:
            return []

    class Changing(Clip):
        def read(self, stride: int = 1, start: int = 0) -> Iterator[Picture]:
            for index, width in enumerate((32, 32, 48, 48, 32)):
                yield Picture(index=index, time=0.0, name="", image=picture(index, width))

    monkeypatch.setattr(following, "Smoother", Spy)
    with Here() as car:
        list(follow(Changing(source="changing"), Following(smooth="mean"), car))
    assert [each for each in made if each] == [[32, 32], [48, 48], [32]]
