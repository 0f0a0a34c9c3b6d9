"""Known palettes and colours, in any order; grey of few bits; masks that the client wrote and people edited."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from annotating import COLOURS, palette_png, refused, save, write
from painting import PARTS, paint
from slime_client.formats import FORMATS, merged_coco
from slime_client.images import encode
from slime_client.mask import Mask
from slime_optimize.data.annotations import IGNORED, load_mask, load_training, read
from slime_optimize.data.annotations.palettes import own_palette
from slime_optimize.picture import palette

Bytes = npt.NDArray[np.uint8]
IMAGE, MASK = paint()
VOC = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]], np.uint8)
ORDERS = [[1, 0, 2], [2, 1, 0], [0, 2, 1], [1, 2, 0]]


def reordered(mask_HW: Bytes, colours: npt.ArrayLike, order: list[int], path: Path) -> Path:
    """The same picture, with colour order[i] at index i, as optimisers leave it."""
    table = np.argsort(order).astype(np.uint8)
    return palette_png(table[mask_HW], path, np.asarray(colours, np.uint8)[order])


def grey_png(values_HW: Bytes, bits: int, path: Path) -> Path:
    """A grey PNG of 1, 2 or 4 bits, written by hand: Pillow writes 8."""
    height, width = values_HW.shape
    padded = np.pad(values_HW, ((0, 0), (0, -width % (8 // bits))))
    places = 1 << (8 - bits - bits * np.arange(8 // bits))
    packed = (padded.reshape(height, -1, 8 // bits) * places).sum(2).astype(np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)), (b"IDAT", zlib.compress(rows))]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (*chunks, (b"IEND", b""))
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def same(path: Path, expected: Bytes = MASK, parts: tuple[str, ...] = PARTS) -> bool:
    return np.array_equal(load_mask(path, None, parts).values_HW, expected)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("colours", [VOC[:3], np.array(palette(3), np.uint8), np.array([[i] * 3 for i in range(3)])])
def test_known_palettes_in_any_order(
    tmp_path: Path, order: list[int], colours: Bytes, caplog: pytest.LogCaptureFixture
) -> None:
    assert same(palette_png(MASK, tmp_path / "as_is.png", colours)) and not caplog.text
    assert same(reordered(MASK, colours, order, tmp_path / "mask.png"))
    assert "in another order; the colours are read, not the indices" in caplog.text
    save(np.asarray(colours, np.uint8)[MASK], tmp_path / "rgb.png")
    assert same(tmp_path / "rgb.png")
    save(np.asarray(colours, np.uint8)[MASK], tmp_path / "rgba.png", "RGBA")
    assert same(tmp_path / "rgba.png")


def test_void_of_a_reordered_voc_palette(tmp_path: Path) -> None:
    void = MASK.copy()
    void[:3] = IGNORED
    colours = np.concatenate([VOC[:3], [[224, 224, 192]]])
    path = reordered(np.where(void == IGNORED, 3, void), colours, [2, 3, 0, 1], tmp_path / "mask.png")
    assert same(path, void)
    # Void at 255 may have any colour, such as the background's.
    black = np.concatenate([VOC[:3], np.zeros((253, 3), np.uint8)])
    assert same(palette_png(void, tmp_path / "black.png", black), void)


def test_black_and_white_in_either_order(tmp_path: Path) -> None:
    one = (MASK > 0).astype(np.uint8)
    for order in ([0, 1], [1, 0]):
        path = reordered(one, [[0, 0, 0], [255, 255, 255]], order, tmp_path / f"{order}.png")
        assert same(path, one, PARTS[:2])
    np.save(tmp_path / "array.npy", one * np.uint8(255))
    assert same(tmp_path / "array.npy", one, PARTS[:2])


def test_unknown_palettes_are_believed_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image, mask = save(IMAGE, tmp_path / "car.jpg"), palette_png(MASK, tmp_path / "mask.png")
    (example,) = load_training([image], [mask], PARTS)
    assert np.array_equal(example.mask_HW, MASK)
    assert "taken for part numbers: background is #000000, red is #c81e1e, green is #14b428" in caplog.text


def test_colours_that_are_of_no_known_palette(tmp_path: Path) -> None:
    refused(lambda: load_mask(save(COLOURS[MASK], tmp_path / "m.png"), None, PARTS), "mode RGB", "--legend")
    refused(lambda: load_mask(save(IMAGE, tmp_path / "i.png"), None, PARTS), "mode RGB", "--legend")
    # Known, but of more parts than there are.
    refused(lambda: load_mask(save(VOC[MASK + 2], tmp_path / "v.png"), None, PARTS), "mode RGB", "--legend")


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits(tmp_path: Path, bits: int) -> None:
    mask = np.minimum(MASK, 2**bits - 1)
    path = grey_png(mask, bits, tmp_path / "mask.png")
    with Image.open(path) as picture:
        assert picture.mode == ("1" if bits == 1 else "L")
    assert same(path, mask)
    black_and_white = grey_png((mask > 0).astype(np.uint8) * np.uint8(2**bits - 1), bits, tmp_path / "two.png")
    assert same(black_and_white, (mask > 0).astype(np.uint8), PARTS[:2])


def test_grey_of_four_bits_with_many_parts(tmp_path: Path) -> None:
    mask = (np.arange(64, dtype=np.uint8) % 16).reshape(8, 8)
    assert same(grey_png(mask, 4, tmp_path / "mask.png"), mask, tuple("abcdefghijklmnop"))


@pytest.mark.parametrize("form", ["as_is", "reordered", "optimised", "RGB", "RGBA"])
def test_a_mask_that_the_client_wrote_comes_back_corrected(tmp_path: Path, form: str) -> None:
    """Beside a first mask, painted by hand with a palette of its own."""
    save(IMAGE, tmp_path / "images" / "first.jpg")
    save(IMAGE, tmp_path / "images" / "second.jpg")
    save(IMAGE, tmp_path / "images" / "second-overlay.jpg")
    palette_png(MASK, tmp_path / "masks" / "first.png")
    written = tmp_path / "masks" / "second.png"
    Mask(array=MASK, parts=PARTS, colours=palette(3)).save(written)
    corrected = MASK.copy()
    corrected[12:20, 12:20] = 2
    with Image.open(written) as opened:
        picture = opened.copy()
    picture.putdata(corrected.ravel().tolist())
    if form == "reordered":
        reordered(corrected, palette(3), [2, 0, 1], written)
    elif form == "optimised":
        picture.convert("RGB").quantize(16).save(written)
    else:
        (picture if form == "as_is" else picture.convert(form)).save(written)
    examples = read(tmp_path, PARTS).examples
    assert [example.name for example in examples] == ["first", "second"]
    assert np.array_equal(examples[0].mask_HW, MASK) and np.array_equal(examples[1].mask_HW, corrected)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_what_the_client_wrote_is_read_again(tmp_path: Path, suffix: str) -> None:
    """COCO of all images and the grey PNG; the palette PNG has the name of a PNG image, and is never taken for it."""
    photo = save(IMAGE, tmp_path / "photos" / f"Tür 1{suffix}")
    mask = Mask(array=MASK, parts=PARTS, colours=palette(3), source=encode(photo))
    out = tmp_path / "out"
    out.mkdir()
    for form in ("palette", "index", "coco", "overlay"):
        FORMATS[form].write(FORMATS[form].path(out, photo.stem), mask, photo.name)
    coco = out / "coco.json"
    coco.write_bytes(merged_coco([(out / "coco" / "Tür 1.json").read_bytes()]))
    told = "is a mask as slime segment writes it" if suffix == ".png" else "there is no such file"
    refused(lambda: read(coco), told)
    moved = photo.rename(tmp_path / photo.name)
    for source in (coco.rename(tmp_path / "coco.json"), tmp_path):
        found = read(source)
        assert found.parts == PARTS and np.array_equal(found.examples[0].mask_HW, MASK)
    (tmp_path / "coco.json").unlink()
    (out / "Tür 1-index.png").rename(tmp_path / "Tür 1-index.png")
    (out / "Tür 1-overlay.jpg").rename(tmp_path / "Tür 1-overlay.jpg")
    (example,) = read(tmp_path, PARTS).examples
    assert example.name == moved.stem and np.array_equal(example.mask_HW, MASK)


def test_own_colours_in_another_order_beside_others_are_asked_about(tmp_path: Path) -> None:
    colours = np.array([palette(3)[2], palette(3)[0], (1, 2, 3)], np.uint8)
    path = palette_png(MASK, tmp_path / "mask.png", colours)
    refused(lambda: load_mask(path, None, PARTS), "in another order", "#010203 (900 pixels)", "--legend")
    legend = dict(zip(("#fbbc05", "#28282e", "#010203"), ("green", "background", "red"), strict=True))
    save(IMAGE, tmp_path / "f" / "car.jpg")
    path.rename(tmp_path / "f" / "car.png")
    (example,) = read(tmp_path / "f", PARTS, legend=write(legend, tmp_path / "l.json")).examples
    assert np.array_equal(example.mask_HW, np.array([2, 0, 1])[MASK])


def test_own_palette_is_that_of_written_masks() -> None:
    assert list(own_palette().numbers)[:12] == list(palette(12))


def test_arrays_of_floats(tmp_path: Path) -> None:
    path = tmp_path / "mask.npy"
    for dtype in (np.float16, np.float32, np.float64):
        np.save(path, MASK.astype(dtype))
        assert same(path), dtype
    for shape in ((1, *MASK.shape), (*MASK.shape, 1)):
        np.save(path, MASK.reshape(shape))
        assert same(path), shape
    for wrong in (MASK + 0.25, np.where(MASK == 1, np.nan, MASK), np.where(MASK == 1, np.inf, MASK)):
        np.save(path, wrong)
        refused(lambda: load_mask(path, None, PARTS), "fractions, NaN or very large numbers", "argmax")
    np.save(path, np.eye(3, dtype=np.float32)[MASK])
    refused(lambda: load_mask(path, None, PARTS), "shape (70, 90, 3), expected (height, width)")
