"""Clips as people have them: each kind is read as it is meant, or refused in one line."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from clips import clip, number_of, picture, sound_alone, streamed
from PIL import Image

from slime_client import SegmenterError
from slime_client.video import reading
from slime_client.video.reading import Clip, Picture, is_clip, opened

av = pytest.importorskip("av")


def read(source: object, stride: int = 1, start: int = 0) -> tuple[Clip, list[Picture]]:
    clip = opened(str(source))
    return clip, list(clip.read(stride, start))


def numbers(pictures: list[Picture]) -> list[int]:
    return [number_of(each.image) for each in pictures]


def times(pictures: list[Picture]) -> list[float]:
    return [round(each.time, 3) for each in pictures]


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.mov", "clip.avi", "clip.ts"])
def test_every_picture_with_its_time(tmp_path: Path, name: str) -> None:
    clip_, pictures = read(clip(tmp_path / name, map(picture, range(20))))
    assert numbers(pictures) == [each.index for each in pictures] == list(range(20))
    assert times(pictures) == [round(place / 10, 3) for place in range(20)]
    assert clip_.pictures == 20 and clip_.damage == ""
    assert pictures[7].name == "000007" and pictures[7].image.shape == (16, 32, 3)


def test_stride_and_start(tmp_path: Path) -> None:
    path = clip(tmp_path / "clip.mp4", map(picture, range(20)))
    assert numbers(read(path, stride=6)[1]) == [0, 6, 12, 18]
    assert numbers(read(path, stride=6, start=7)[1]) == [12, 18]


@pytest.mark.parametrize(("rotation", "corner"), [(90, (-1, 0)), (-90, (0, -1)), (180, (-1, -1))])
def test_rotation_in_the_metadata_is_applied(tmp_path: Path, rotation: int, corner: tuple[int, int]) -> None:
    """FFmpeg counts against the clock: turned by 90, the upper left corner is the lower left one."""
    _, pictures = read(clip(tmp_path / "clip.mp4", map(picture, range(3)), rotation=rotation))
    image = pictures[1].image
    assert image.shape == ((16, 32, 3) if rotation == 180 else (32, 16, 3))
    corners = {place: int(image[place].mean()) for place in ((0, 0), (0, -1), (-1, 0), (-1, -1))}
    assert max(corners, key=lambda place: corners[place]) == corner


def test_a_slanted_rotation_is_refused(tmp_path: Path) -> None:
    path = clip(tmp_path / "clip.mp4", map(picture, range(3)), rotation=30)
    with pytest.raises(SegmenterError, match=r"turned by \S+ degrees, expected a multiple of 90; convert it first"):
        read(path)


def test_variable_frame_rate(tmp_path: Path) -> None:
    ticks = [0, 1, 2, 10, 11, 30]
    _, pictures = read(clip(tmp_path / "clip.mp4", map(picture, range(6)), ticks=lambda place: ticks[place]))
    assert numbers(pictures) == list(range(6))
    assert times(pictures) == [tick / 10 for tick in ticks]


def test_unknown_length_and_no_times(tmp_path: Path) -> None:
    """As a stream of H.264 alone has it, which says nothing but the pictures."""
    clip_, pictures = read(clip(tmp_path / "clip.h264", map(picture, range(9)), form="h264"))
    assert clip_.pictures is clip_.seconds is None
    assert numbers(pictures) == list(range(9))
    assert times(pictures) == [round(place / 25, 3) for place in range(9)]


def test_sound_is_left_out(tmp_path: Path) -> None:
    clip_, pictures = read(clip(tmp_path / "clip.mp4", map(picture, range(9)), sound=True))
    assert numbers(pictures) == list(range(9)) and clip_.damage == ""


def test_sound_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SegmenterError, match="got audio, expected a video"):
        opened(sound_alone(tmp_path / "song.mp4"))


@pytest.mark.parametrize("name", ["clip.mkv", "clip.avi", "front.mp4"])
def test_a_cut_off_file_gives_what_is_there_and_says_so(tmp_path: Path, name: str) -> None:
    options = {"movflags": "faststart"} if name == "front.mp4" else {}
    noise = np.random.default_rng(0).integers(0, 256, (60, 64, 64, 3), dtype=np.uint8)
    path = clip(tmp_path / name, noise, options=options)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    clip_, pictures = read(path)
    assert 10 < len(pictures) < 50
    assert "it is cut off" in clip_.damage or "reading ended after" in clip_.damage or "damaged" in clip_.damage


def test_a_file_without_its_end_where_the_index_was(tmp_path: Path) -> None:
    path = clip(tmp_path / "clip.mp4", map(picture, range(20)))
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(SegmenterError, match=r"clip.mp4: cannot be opened .*; is it a video, and whole\?"):
        opened(path)


def test_a_size_that_changes_in_mid_stream(tmp_path: Path) -> None:
    first = clip(tmp_path / "a.h264", map(picture, range(5)), form="h264")
    second = clip(tmp_path / "b.h264", (picture(each, 16, 48) for each in range(5, 9)), form="h264")
    (tmp_path / "both.h264").write_bytes(first.read_bytes() + second.read_bytes())
    _, pictures = read(tmp_path / "both.h264")
    assert numbers(pictures) == list(range(9))
    assert [each.image.shape[:2] for each in pictures] == [(16, 32)] * 5 + [(48, 16)] * 4


def test_folders_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in range(12):
        Image.fromarray(picture(number)).save(tmp_path / f"frame{number}.png")
    (tmp_path / "notes.txt").touch()
    clip_, pictures = read(tmp_path)
    assert clip_.pictures == 12
    assert numbers(pictures) == list(range(12)) and pictures[10].name == "frame10"
    assert times(pictures)[:3] == [0.0, 0.04, 0.08]
    assert numbers(read(tmp_path, stride=5, start=1)[1]) == [5, 10]


@pytest.mark.parametrize("deep", [False, True], ids=["8 bits", "16 bits"])
def test_a_volume_is_a_stack_of_pages(tmp_path: Path, deep: bool) -> None:
    pages = [picture(number)[..., 0] for number in range(7)]
    stack = [Image.fromarray(page.astype(np.uint16) * 257 if deep else page) for page in pages]
    stack[0].save(tmp_path / "volume.tif", save_all=True, append_images=stack[1:])
    clip_, pictures = read(tmp_path / "volume.tif")
    assert clip_.pictures == 7 and numbers(pictures) == list(range(7))
    np.testing.assert_array_equal(pictures[3].image, picture(3))
    assert numbers(read(tmp_path / "volume.tif", stride=3, start=1)[1]) == [3, 6]


def test_pages_of_floats_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "volume.tif")
    with pytest.raises(SegmenterError, match=r"volume.tif, page 0: got mode F, expected RGB or grey"):
        read(tmp_path / "volume.tif")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere.mp4", "no such file; check the path"),
        ("text.mp4", "cannot be opened .*; is it a video, and whole"),
        ("text.tif", "cannot be read"),
        ("empty", "no images found; give a folder of frames"),
    ],
)
def test_what_is_no_clip(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "text.tif").write_text("no pages")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SegmenterError, match=said) as caught:
        read(tmp_path / name)
    assert caught.value.code == "INVALID_ARGUMENT"


def test_without_pyav_one_line_says_which_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clip(tmp_path / "clip.mp4", map(picture, range(3)))
    Image.fromarray(picture(1)).save(tmp_path / "page.tif")
    monkeypatch.setattr(reading.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SegmenterError, match=r"PyAV, which is missing; pip install 'slime-serve\[video\]'") as caught:
        opened(path)
    assert caught.value.code == "FAILED_PRECONDITION"
    assert len(list(opened(tmp_path / "page.tif").read())) == 1


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[str]:
    with streamed(clip(tmp_path / "sent.ts", map(picture, range(12)), form="mpegts").read_bytes()) as url:
        yield url


def test_a_stream_over_the_network(stream: str) -> None:
    clip_, pictures = read(stream)
    assert clip_.live and clip_.pictures is None
    assert numbers(pictures) == list(range(12))


def test_a_stream_that_nobody_sends() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(SegmenterError, match=r"cannot be opened .*; is it on, and may you use it"):
            opened(url)


def test_what_a_command_line_means() -> None:
    assert all(map(is_clip, ["a.mp4", "b.MOV", "rtsp://camera/1", "/dev/video0"]))
    assert not any(map(is_clip, ["a.jpg", "folder", "volume.tif", "-"]))
