"""What the server says that an image takes decides how long the client waits, and for how many images at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fake_triton import FakeTriton

from slime_client import Segmenter, aio
from slime_client.cli import main


@pytest.mark.parametrize(
    ("said", "timeout", "concurrency"),
    [(None, 30, 8), ("0.05", 30, 8), ("2", 48, 4), ("10", 240, 2), ("soon", 30, 8), ("-3", 30, 8), ("inf", 30, 8)],
)
def test_the_defaults_follow(server: FakeTriton, said: str | None, timeout: float, concurrency: int) -> None:
    server.models["car"] |= {"image_seconds": said} if said else {}
    with Segmenter(server.url, "car") as car:
        assert (car.timeout, car.concurrency) == (timeout, concurrency)
    with Segmenter(server.url, "car", timeout=7) as car:
        assert (car.timeout, car.concurrency) == (7, concurrency)


def test_a_new_version_says_so_anew(server: FakeTriton, photo: Path) -> None:
    server.models["car"]["image_seconds"] = "10"
    with Segmenter(server.url, "car") as car:
        server.version, server.models["car"]["image_seconds"] = "2", "5"
        car.segment(photo)
        assert car.timeout == 120


@pytest.mark.parametrize(("of_group", "of_segmenter", "timeout"), [("10", 5, 240), (None, 5, 120), (None, None, 30)])
def test_in_the_shared_form_the_group_says_so_or_the_segmenter(
    server: FakeTriton, photo: Path, of_group: str | None, of_segmenter: float | None, timeout: float
) -> None:
    entry = {"parts": ["background", "head"], "colours": [[0, 0, 0], [9, 9, 9]], "model": "shared_1"}
    server.registry = {"horse": entry | ({"image_seconds": of_segmenter} if of_segmenter else {})}
    server.models["shared_1"] = {"image_seconds": of_group} if of_group else {}
    with Segmenter(server.url, "horse") as horse:
        assert horse.timeout == timeout
        horse.segment(photo)
        assert horse.timeout == timeout


def test_no_more_are_in_flight(server: FakeTriton, photo: Path) -> None:
    server.models["car"]["image_seconds"], server.delay_s = "10", 0.05
    with Segmenter(server.url, "car") as car:
        assert len(list(car.segment_many([photo] * 6))) == 6
    assert server.most_flying == 2

    async def many() -> int:
        async with aio.Segmenter(server.url, "car") as car:
            return len([answer async for answer in car.segment_many([photo] * 6)])

    assert asyncio.run(many()) == 6
    assert server.most_flying == 2


@pytest.mark.parametrize(
    ("options", "flying", "line"),
    [
        ([], 2, "about 10 s an image here; 2 in flight, and up to 240 s for each"),
        (
            ["--concurrency", "3", "--timeout", "50"],
            3,
            "about 10 s an image here; 3 in flight, and up to 50 s for each",
        ),
    ],
)
def test_the_command_tells_it_first(
    server: FakeTriton,
    photo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    flying: int,
    line: str,
) -> None:
    server.models["car"]["image_seconds"], server.delay_s = "10", 0.2
    images = [tmp_path / f"{number}.jpg" for number in range(6)]
    for image in images:
        image.write_bytes(photo.read_bytes())
    words = ["--url", server.url, "--segmenter", "car", "--out", str(tmp_path / "out"), *options]
    assert main([*words, *map(str, images)]) == 0
    assert capsys.readouterr().err.splitlines()[0] == line
    assert server.most_flying == flying
