"""Every kind of picture that people send becomes upright RGB, and everything else one clear line."""

from __future__ import annotations

import io
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from slime_image import ImageError, decode, load

Pixels = npt.NDArray[np.uint8]
COLOURS = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[255, 255, 0], [0, 0, 0], [255, 255, 255]]], np.uint8)

LOSSLESS: tuple[tuple[str, dict[str, bool]], ...] = (("PNG", {}), ("WEBP", {"lossless": True}))


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises width x height pixels and holds none."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(header))
    data = b"IDAT"
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + crc
        + struct.pack(">I", 0)
        + data
        + struct.pack(">I", zlib.crc32(data))
    )


def test_rgb_png_and_lossless_webp_are_exact() -> None:
    image = Image.fromarray(COLOURS)
    assert np.array_equal(decode(encoded(image)), COLOURS)
    assert np.array_equal(decode(encoded(image, "WEBP", lossless=True)), COLOURS)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int) -> None:
    turns: dict[int, Callable[[Pixels], Pixels]] = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, 1),
    }
    undo = turns[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for format, options in LOSSLESS:
        assert np.array_equal(decode(encoded(Image.fromarray(COLOURS), format, exif=exif, **options)), undo(COLOURS))
    big = np.kron(COLOURS, np.ones((16, 16, 1), np.uint8))
    jpeg = decode(encoded(Image.fromarray(big), "JPEG", exif=exif, quality=95, subsampling=0))
    assert np.abs(jpeg.astype(int) - undo(big)).mean() < 4


def test_broken_exif_is_ignored() -> None:
    data = encoded(Image.fromarray(COLOURS), "PNG", exif=b"Exif\x00\x00nonsense")
    assert np.array_equal(decode(data), COLOURS)


def test_16_bit_grayscale_is_scaled_not_clipped() -> None:
    values = np.array([[0, 257 * 10, 257 * 128], [257 * 200, 65535, 300]], np.uint16)
    assert decode(encoded(Image.fromarray(values)))[..., 0].tolist() == [[0, 10, 128], [200, 255, 1]]


def test_grayscale_and_bilevel() -> None:
    gray = np.array([[0, 100], [200, 255]], np.uint8)
    assert np.array_equal(decode(encoded(Image.fromarray(gray))), np.repeat(gray[..., None], 3, 2))
    assert decode(encoded(Image.fromarray(gray).convert("1", dither=Image.Dither.NONE)))[..., 1].tolist() == [
        [0, 0],
        [255, 255],
    ]


def test_palette() -> None:
    image = Image.fromarray(COLOURS).quantize(8)
    assert np.array_equal(decode(encoded(image)), np.asarray(image.convert("RGB")))


def test_transparency_is_laid_over_white() -> None:
    rgba = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 128]]], np.uint8)
    assert decode(encoded(Image.fromarray(rgba))).tolist() == [[[255, 0, 0], [255, 255, 255], [127, 127, 127]]]
    gray_alpha = np.array([[[0, 255], [0, 0]]], np.uint8)
    assert decode(encoded(Image.fromarray(gray_alpha)))[0, :, 0].tolist() == [0, 255]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert decode(encoded(palette, transparency=1)).tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_cmyk_jpeg() -> None:
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(decode(encoded(cmyk, "JPEG")).astype(int) - [255, 0, 0]).max() < 10


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_truncated(format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise), format)
    with pytest.raises(ImageError) as caught:
        decode(data[: len(data) // 2])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "0 bytes"),
        (b"not an image", "not an i"),
        (encoded(Image.fromarray(COLOURS), "GIF"), "GIF8"),
        (encoded(Image.fromarray(COLOURS), "BMP"), "JPEG, PNG or WebP"),
        (b"\xff\xd8\xff\xe0", "JPEG, PNG or WebP"),
    ],
)
def test_no_image(data: bytes, says: str) -> None:
    with pytest.raises(ImageError, match=says) as caught:
        decode(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("width", "height"), [(10001, 10000), (100_000, 100_000), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels_are_refused_from_the_header(width: int, height: int) -> None:
    start = time.monotonic()
    with pytest.raises(ImageError, match=r"too large|megapixels"):
        decode(png_header(width, height))
    assert time.monotonic() - start < 0.5


def test_long_images_are_refused_from_the_header() -> None:
    """12 x 2,000,000 pixels are a file of 140 kB."""
    for width, height in ((16_385, 1), (12, 2_000_000), (50_000_000, 1)):
        for data in (png_header(width, height), b"P6 %d %d 255\n" % (width, height)):
            with pytest.raises(ImageError, match=f"got {width} x {height} pixels, expected at most 16384 a side"):
                decode(data)
    assert decode(encoded(Image.new("RGB", (16_384, 2)))).shape == (2, 16_384, 3)


def test_pixel_limit_is_inclusive() -> None:
    data = encoded(Image.new("RGB", (10, 10)))
    assert decode(data, max_pixels=100).shape == (10, 10, 3)
    with pytest.raises(ImageError, match="10 x 10"):
        decode(data, max_pixels=99)


def test_raw_pixels_are_taken_as_they_are() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    decoded = decode(b"P6\n7 5\n255\n" + image.tobytes())
    np.testing.assert_array_equal(decoded, image)
    decoded[0, 0] = 0  # writable, as torch wants it


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"P6\n7 5\n255\n" + bytes(104), "got 104 bytes of raw pixels, expected 7 x 5 x 3"),
        (b"P6\n7 5\n255\n" + bytes(106), "got 106 bytes of raw pixels, expected 7 x 5 x 3"),
        (b"P6\n0 5\n255\n", "at least 1 x 1"),
        (b"P6\n99999 99999\n255\n", "expected at most 50"),
        (b"P6\n7 5\n65535\n" + bytes(210), "expected a readable JPEG, PNG or WebP"),
        (b"P6\n# hm\n7 5\n255\n" + bytes(105), "expected a readable JPEG, PNG or WebP"),
        (b"P3\n1 1\n255\n1 2 3\n", "expected a readable JPEG, PNG or WebP"),
        (b"P6\n7 -5\n255\n" + bytes(105), "expected a readable JPEG, PNG or WebP"),
        (b"P6\n" + b"9" * 5000 + b" 1\n255\n", "expected a readable JPEG, PNG or WebP"),
    ],
)
def test_what_are_no_raw_pixels(data: bytes, says: str) -> None:
    with pytest.raises(ImageError, match=says) as caught:
        decode(data)
    assert "\n" not in str(caught.value)


def test_load_names_the_path(tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(encoded(Image.fromarray(COLOURS)))
    assert np.array_equal(load(tmp_path / "good.png"), COLOURS)
    (tmp_path / "bad.png").write_bytes(b"junk")
    for name in ("bad.png", "missing.png", "."):
        with pytest.raises(ImageError) as caught:
            load(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


FILES: dict[str, tuple[str, dict[str, Any], int]] = {  # suffix: format, options, how far colours may be off
    "tif": ("TIFF", {"compression": "tiff_lzw"}, 0),
    "bmp": ("BMP", {}, 0),
    "gif": ("GIF", {}, 0),
    "avif": ("AVIF", {"quality": 100, "subsampling": "4:4:4"}, 8),
    "heic": ("HEIF", {"quality": 95}, 30),
}


@pytest.mark.parametrize("suffix", FILES)
def test_files_may_have_more_formats_than_what_is_sent(tmp_path: Path, suffix: str) -> None:
    format, options, off = FILES[suffix]
    if suffix == "heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    Image.init()
    if format not in Image.SAVE:
        pytest.skip(f"this Pillow has no {format}")
    big = np.kron(COLOURS, np.ones((16, 16, 1), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = {"exif": exif.tobytes()} if suffix in ("tif", "avif", "heic") else {}
    (tmp_path / f"a.{suffix}").write_bytes(encoded(Image.fromarray(big), format, **options, **turned))
    image = load(tmp_path / f"a.{suffix}").astype(int)
    assert np.abs(image - (np.rot90(big, -1) if turned else big)).max() <= off
    with pytest.raises(ImageError, match="expected a readable JPEG, PNG or WebP"):
        decode((tmp_path / f"a.{suffix}").read_bytes())


def test_heic_without_its_package_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    with pytest.raises(ImageError, match=r"a\.heic: is HEIC, .*pip install 'slime-serve\[heic\]'"):
        load(tmp_path / "a.heic")


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_values_of_no_known_range_are_refused(tmp_path: Path, dtype: Any) -> None:
    Image.fromarray(np.array([[0, 1], [2, 70000]], dtype)).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match="values from 0 to 70000, expected 8 or 16 bits"):
        load(tmp_path / "a.tif")
