"""Looking at a mask and keeping it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from slime_client import Mask, SegmenterError

PARTS = ("background", "body", "wheel")
COLOURS = ((9, 9, 9), (200, 30, 30), (30, 30, 200))


def mask_of(array: Any) -> Mask:
    return Mask(array=np.array(array, np.uint8), parts=PARTS, colours=COLOURS)


def test_a_saved_mask_is_a_palette_png_of_part_indices(tmp_path: Path) -> None:
    mask = mask_of([[0, 1, 2], [2, 1, 0]])
    mask.save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as saved:
        assert saved.mode == "P"
        np.testing.assert_array_equal(np.asarray(saved), mask.array)
        assert saved.convert("RGB").getpixel((1, 0)) == COLOURS[1]
    assert [path.name for path in tmp_path.iterdir()] == ["mask.png"]


def test_saving_fails_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mask.png"
    path.write_bytes(b"before")

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(SegmenterError, match=r"cannot be written \(No space left on device\)"):
        mask_of([[0]]).save(path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("mask.png", b"before")]


@pytest.mark.parametrize("name", ["mask.jpg", "mask", "nowhere/mask.png"])
def test_saving_to_a_bad_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(SegmenterError, match=name) as caught:
        mask_of([[0]]).save(tmp_path / name)
    assert caught.value.code == "INVALID_ARGUMENT"
    assert not list(tmp_path.iterdir())


def test_an_overlay_tints_the_parts_and_leaves_the_background() -> None:
    image = np.full((1, 3, 3), 100, np.uint8)
    overlay = np.asarray(mask_of([[0, 1, 2]]).overlay(image, opacity=0.5))
    np.testing.assert_array_equal(overlay, [[[100, 100, 100], [150, 65, 65], [65, 65, 150]]])


def test_an_overlay_on_16_bit_grey_and_on_transparency() -> None:
    mask = mask_of([[0]])
    grey = Image.fromarray(np.full((1, 1), 0x8000, np.uint16))
    assert mask.overlay(grey).getpixel((0, 0)) == (128, 128, 128)
    assert mask.overlay(Image.new("RGBA", (1, 1), (0, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)


def test_an_overlay_wants_an_image_of_the_masks_size() -> None:
    with pytest.raises(SegmenterError, match="got 2 x 5 pixels, expected 3 x 1, the mask's size"):
        mask_of([[0, 1, 2]]).overlay(np.zeros((5, 2, 3), np.uint8))
    with pytest.raises(SegmenterError, match="pass one") as caught:
        mask_of([[0]]).overlay()
    assert caught.value.code == "FAILED_PRECONDITION"
    with pytest.raises(SegmenterError, match="image bytes"):
        mask_of([[0]]).overlay(b"no picture")


@pytest.mark.parametrize(
    ("array", "colours"),
    [
        (np.zeros((2, 2), np.int64), COLOURS),
        (np.zeros((2, 2, 1), np.uint8), COLOURS),
        (np.zeros((0, 2), np.uint8), COLOURS),
        (np.full((2, 2), 3, np.uint8), COLOURS),
        (np.zeros((2, 2), np.uint8), COLOURS[:2]),
    ],
)
def test_what_is_no_mask(array: Any, colours: Any) -> None:
    with pytest.raises(SegmenterError, match="mask: got"):
        Mask(array=array, parts=PARTS, colours=colours)
