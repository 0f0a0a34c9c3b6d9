"""--local: the same command with a segmenter of this process in place of a server; the client is handed a callable."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from slime_client import Description
from slime_client.cli import main
from slime_client.local import LocalSegmenter

RED = (200, 0, 0)


class Local:
    """Says that every picture is of part 1, and counts how many it has at a time."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.at_once = threading.Semaphore(1)

    def __call__(self, where: str) -> LocalSegmenter:
        self.asked.append(where)
        told = Description(name="car", parts=("background", "body"), colours=((0, 0, 0), RED), model="here", about={})
        return LocalSegmenter(description=told, mask_of=self.mask_of)

    def mask_of(self, image: bytes) -> npt.NDArray[np.uint8]:
        assert self.at_once.acquire(blocking=False)
        try:
            if not image.startswith(b"\xff\xd8"):
                raise ValueError("no picture")
            return np.ones((6, 8), np.uint8)
        finally:
            self.at_once.release()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for index in range(5):
        Image.new("RGB", (8, 6), (90, 90, 90)).save(tmp_path / "photos" / f"{index}.jpg")
    return tmp_path / "photos"


def test_the_same_results_and_the_same_going_on(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local, out = Local(), tmp_path / "out"
    words = [str(photos), "--local", "segmenters/car", "--out", str(out), "--format", "palette", "--format", "npz"]
    assert main([*words, "--concurrency", "4"], local=local) == 0
    assert local.asked == ["segmenters/car"]
    with Image.open(out / "0.png") as mask, Image.open(out / "0-overlay.jpg") as overlay:
        assert mask.getpixel((0, 0)) == 1 and mask.convert("RGB").getpixel((0, 0)) == RED
        assert overlay.size == (8, 6)
    assert (out / "4.npz").is_file()
    (photos / "bad.jpg").write_text("text")
    capsys.readouterr()
    assert main(words, local=local) == 1
    told = capsys.readouterr().err
    assert "5 of 6 images were done before" in told and f"error: {photos / 'bad.jpg'}: no picture" in told


def test_what_does_not_go_together(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(photos), "--out", str(tmp_path / "out"), "--local", "segmenters/car"]
    for more, local, said in (
        (["--url", "there:8001"], Local(), "--local: asks no server, got --url there:8001 too; give one of them"),
        ([], None, "--local: is an option of `slime segment`; run that"),
    ):
        assert main([*words, *more], local=local) == 2
        assert capsys.readouterr().err == f"error: {said}\n"
    for which in ([], ["--local", "a", "--segmenter", "b"]):
        with pytest.raises(SystemExit) as left:
            main([str(photos), "--out", str(tmp_path), *which], local=Local())
        assert left.value.code == 2 and "--local" in capsys.readouterr().err
