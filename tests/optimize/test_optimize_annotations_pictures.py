"""Kinds of images that people have, with a mask over each: handled, or refused clearly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from annotating import ORIENTATION, refused, save, write
from painting import PARTS, paint
from slime_optimize.data.annotations import read

IMAGE, MASK = paint()


def pair(folder: Path, image: Path, mask: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] = MASK) -> Path:
    save(mask, folder / "masks" / f"{image.stem}.png")
    write(list(PARTS), folder / "parts.json")
    return folder


def only(folder: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The one image, after a look at its mask."""
    (example,) = read(folder).examples
    assert np.array_equal(example.mask_HW, MASK) and example.name == "car" and len(example.digest) == 64
    return example.image_HW3


def test_grayscale_image(tmp_path: Path) -> None:
    image = only(pair(tmp_path, save(IMAGE[..., 0], tmp_path / "images" / "car.png")))
    assert np.array_equal(image, np.repeat(IMAGE[..., :1], 3, 2))


def test_16_bit_image(tmp_path: Path) -> None:
    wide = IMAGE[..., 0].astype(np.uint16) * 257
    image = only(pair(tmp_path, save(wide, tmp_path / "images" / "car.png")))
    assert np.array_equal(image, np.repeat(IMAGE[..., :1], 3, 2))


def test_alpha_channel(tmp_path: Path) -> None:
    alpha = np.where(MASK == 1, 0, 255).astype(np.uint8)
    image = only(pair(tmp_path, save(np.dstack([IMAGE, alpha]), tmp_path / "images" / "car.png")))
    assert (image[MASK == 1] == 255).all() and np.array_equal(image[MASK != 1], IMAGE[MASK != 1])


def test_cmyk_jpeg(tmp_path: Path) -> None:
    smooth = np.zeros_like(IMAGE)
    smooth[MASK == 1] = (255, 0, 0)
    image = only(pair(tmp_path, save(smooth, tmp_path / "images" / "car.jpg", "CMYK", quality=95)))
    assert image.shape == IMAGE.shape
    assert np.abs(image[20:40, 20:30].astype(int) - [255, 0, 0]).max() < 12


@pytest.mark.parametrize("shape", [(1, 300), (300, 1), (7, 5), (40, 41)])
def test_any_size_and_aspect(tmp_path: Path, shape: tuple[int, int]) -> None:
    mask = np.zeros(shape, np.uint8)
    mask.flat[:2] = (1, 2)
    save(np.zeros((*shape, 3), np.uint8), tmp_path / "images" / "car.png")
    (example,) = read(pair(tmp_path, tmp_path / "images" / "car.png", mask)).examples
    assert example.image_HW3.shape == (*shape, 3) and np.array_equal(example.mask_HW, mask)


def stored(folder: Path, orientation: int) -> Path:
    """The picture as a camera held sideways stores it: upright only after its EXIF orientation."""
    undo = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = folder / "images" / "car.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(IMAGE).transpose(undo[orientation]).save(path, exif=exif)
    return path


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_exif_with_a_mask_painted_upright(tmp_path: Path, orientation: int) -> None:
    assert np.array_equal(only(pair(tmp_path, stored(tmp_path, orientation))), IMAGE)


@pytest.mark.parametrize(("orientation", "turns"), [(6, 1), (8, -1)])
def test_exif_with_a_mask_painted_on_the_raw_pixels(tmp_path: Path, orientation: int, turns: int) -> None:
    """Its size tells that the program did not know of EXIF: the mask is turned with the image."""
    assert np.array_equal(only(pair(tmp_path, stored(tmp_path, orientation), np.rot90(MASK, turns))), IMAGE)


def test_turned_mask_of_an_upright_image_is_refused(tmp_path: Path) -> None:
    save(IMAGE, tmp_path / "images" / "car.png")
    folder = pair(tmp_path, tmp_path / "images" / "car.png", np.rot90(MASK))
    refused(lambda: read(folder), "is 70x90, expected 90x70", "paint the mask over the image itself")


def test_broken_image(tmp_path: Path) -> None:
    path = save(IMAGE, tmp_path / "images" / "car.jpg")
    path.write_bytes(path.read_bytes()[:200])
    refused(lambda: read(pair(tmp_path, path)), "car.jpg")


@pytest.mark.parametrize("suffix", [".tif", ".bmp", ".gif"])
@pytest.mark.parametrize(
    "layout", ["images/car{} masks/car.png", "car{} car.png", "car{} car_mask{}", "data/car{} masks/car{}"]
)
def test_other_formats(tmp_path: Path, suffix: str, layout: str, caplog: pytest.LogCaptureFixture) -> None:
    image, mask = (tmp_path / place.format(suffix) for place in layout.split())
    save(IMAGE[..., 0], image)
    save(MASK, mask)
    (example,) = read(tmp_path, PARTS).examples
    assert np.array_equal(example.image_HW3[..., 1], IMAGE[..., 0]) and np.array_equal(example.mask_HW, MASK)


def test_what_was_decided_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "b"):
        save(IMAGE[..., 0].astype(np.uint16) * 257, tmp_path / "images" / f"{name}.tif")
        save(MASK, tmp_path / "masks" / f"{name}.png")
    pages = [Image.fromarray(IMAGE), Image.fromarray(IMAGE[::-1])]
    pages[0].save(tmp_path / "images" / "c.tif", save_all=True, append_images=pages[1:])
    save(MASK, tmp_path / "masks" / "c.png")
    for name in ("notes.psd", "more.psd", "c-overlay.jpg", "_classes.csv"):
        write("Pixel Value, Class\n0, background\n1, red\n2, green\n", tmp_path / "images" / name)
    examples = read(tmp_path, PARTS).examples
    assert all(np.array_equal(example.image_HW3[..., 0], IMAGE[..., 0]) for example in examples)
    told = [line for line in caplog.messages if "images have" in line]
    assert len(told) == 2 and "2 of 3 images have 16 bits of grey, of which 0..65535 becomes 0..255" in told[0]
    assert "1 of 3 images have several frames" in told[1]
    assert "left out: 1 overlays, 2 .psd" in caplog.text


def test_two_files_of_one_name_that_may_both_be_images(tmp_path: Path) -> None:
    save(IMAGE, tmp_path / "car.jpg")
    save(MASK, tmp_path / "car.tif")
    refused(lambda: read(tmp_path, PARTS), "car.tif: there is car.jpg too", "car_mask.tif")


@pytest.mark.parametrize(
    "options", [{"compression": "jpeg"}, {"save_all": True, "append_images": [Image.fromarray(MASK)]}]
)
def test_masks_in_tiff_that_are_not_taken(tmp_path: Path, options: dict[str, object]) -> None:
    save(IMAGE, tmp_path / "images" / "car.png")
    save(MASK, tmp_path / "masks" / "car.tif", **options)
    refused(lambda: read(tmp_path, PARTS), "car.tif", "save", "as PNG")
