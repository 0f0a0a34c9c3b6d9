"""The client against the real server: both kinds of segmenter object, shared memory, raw pixels, the command."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from toy import described_repository
from tritonclient.grpc import InferenceServerClient

from serving import Served, png, served
from slime_client import Access, Mask, Segmenter, SegmenterError, aio, segmenters
from slime_client.cli import main

pytestmark = pytest.mark.triton


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(described_repository(tmp_path_factory.mktemp("client") / "repository")) as running:
        yield running


@pytest.fixture
def image() -> npt.NDArray[np.uint8]:
    """Large enough for shared memory."""
    return np.random.default_rng(0).integers(0, 256, (700, 800, 3), dtype=np.uint8)


def regions(server: Served) -> list[str]:
    with InferenceServerClient(server.grpc) as client:
        return list(client.get_system_shared_memory_status().regions)


def test_raw_compressed_encoded_and_through_shared_memory_alike(server: Served, image: npt.NDArray[np.uint8]) -> None:
    expected = server.segment("toy", png(image))
    with (
        Segmenter(server.grpc, "toy") as through,
        Segmenter(server.grpc, "toy", shared_memory=False) as raw,
        Segmenter(server.grpc, "toy", shared_memory=False, compress=True) as compressed,
    ):
        for segmenter in (through, raw, compressed):
            np.testing.assert_array_equal(segmenter.segment(image).array, expected)
        np.testing.assert_array_equal(through.segment(png(image)).array, expected)
        assert len(regions(server)) == 1
    assert regions(server) == []


def test_asyncio(server: Served, image: npt.NDArray[np.uint8]) -> None:
    async def whole() -> list[Mask]:
        async with aio.Segmenter(server.grpc, "toy") as toy:
            return [answer.mask async for answer in toy.segment_many([image, image[:9, :9]] * 4, concurrency=4)]

    masks = asyncio.run(whole())
    assert [mask.array.shape for mask in masks] == [(700, 800), (9, 9)] * 4
    np.testing.assert_array_equal(masks[0].array, server.segment("toy", png(image)))
    assert regions(server) == []


def test_cancelled_calls_leave_no_region_and_a_server_that_answers(
    server: Served, image: npt.NDArray[np.uint8]
) -> None:
    with Segmenter(server.grpc, "toy") as toy:
        for pause in (0.0, 0.002, 0.01, 0.03):
            future = toy.submit(image)
            time.sleep(pause)
            future.cancel()
        assert toy.segment(image).array.shape == (700, 800)
    assert regions(server) == []


def test_a_bad_image(server: Served) -> None:
    with Segmenter(server.grpc, "toy") as toy, pytest.raises(SegmenterError) as caught:
        toy.segment(b"no picture")
    assert caught.value.code == "INVALID_ARGUMENT"
    assert "expected a readable JPEG, PNG or WebP" in str(caught.value)


def test_what_is_served_is_listed(server: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert [description.name for description in segmenters(server.grpc)] == ["toy"]
    assert main(["info", "toy", "--url", server.grpc]) == 0
    assert "part 4" in capsys.readouterr().out


def test_the_command(server: Served, image: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(image[: 20 + number]))
    words = ["--url", server.grpc, "--segmenter", "toy", "--out", str(tmp_path / "out"), "--format", "npz"]
    assert main([*words, str(tmp_path / "*.png")]) == 0
    for number in range(3):
        with np.load(tmp_path / "out" / f"{number}.npz") as arrays:
            assert arrays["mask"].shape == (20 + number, 800)


def test_a_clip(server: Served, image: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    """A folder of frames, as single images, and smoothed along the flow, from the shell and in Python."""
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(6):
        (frames / f"{number}.png").write_bytes(png(np.roll(image[:90, :120], 3 * number, axis=1)))
    with Segmenter(server.grpc, "toy") as toy:
        for frame in toy.video(frames):
            np.testing.assert_array_equal(frame.mask.array, toy.segment(frames / f"{frame.name}.png").array)
        smoothed = {frame.name: frame.mask.array for frame in toy.video(frames, smooth="flow")}
    words = ["--url", server.grpc, "--segmenter", "toy", "--out", str(tmp_path / "out"), "--video", "--smooth", "flow"]
    assert main([*words, str(frames)]) == 0
    for name, mask in smoothed.items():
        with Image.open(tmp_path / "out" / f"{name}.png") as written:
            np.testing.assert_array_equal(np.asarray(written), mask)
    assert len(smoothed) == 6 and regions(server) == []


def test_a_key_opens_listing_and_shared_memory(image: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    (tmp_path / "key").write_text("0123456789abcdef-0123456789abcdef\n")
    access = Access(admin_key_file=tmp_path / "key")
    repository = described_repository(tmp_path / "repository")
    with served(repository, "--admin-key-file", str(tmp_path / "key")) as server:
        with pytest.raises(SegmenterError) as caught:
            segmenters(server.grpc)
        assert caught.value.code == "UNAUTHENTICATED"
        assert [description.name for description in segmenters(server.grpc, access=access)] == ["toy"]
        with Segmenter(server.grpc, "toy") as keyless, Segmenter(server.grpc, "toy", access=access) as keyed:
            np.testing.assert_array_equal(keyless.segment(image).array, keyed.segment(image).array)
            assert [segmenter._regions._allowed for segmenter in (keyless, keyed)] == [False, True]
