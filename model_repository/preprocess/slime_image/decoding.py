"""Decodes images into upright RGB pixels, with a server's limits: few formats, pixels counted before decoding.

Files that lie on this machine may have more formats than data that comes over the network. It knows nothing of networks
or sizes to fit. Every problem of the data is an ``ImageError`` of one line.
"""

from __future__ import annotations

import importlib.util
import io
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP")
# What files may be besides; HEIF is read by pillow-heif where it is installed, AVIF by Pillow from 11.3 on.
FILE_FORMATS = (*FORMATS, "TIFF", "BMP", "GIF", "AVIF", "HEIF")
# Where a file of the ISO base media family says which of them it is.
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF"} | dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"mif1"), "HEIF")
MAX_PIXELS = 50_000_000
# More than cameras and screens have, and what one line of a mask costs stays small.
MAX_SIDE = 16_384
# More than that many pixels take in any of the formats, uncompressed and with transparency.
MAX_BYTES = 4 * MAX_PIXELS + 10_000_000
# Raw pixels as a program sends them, and nothing else of the PNM family: no comments, no text, 8 bits.
_RAW = re.compile(rb"P6\s(\d{1,9})\s(\d{1,9})\s255\s")
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """The data is no image that can be used; the message is one line fit to show to whoever sent it."""


def decode(data: bytes, max_pixels: int = MAX_PIXELS, formats: Sequence[str] = FORMATS) -> npt.NDArray[np.uint8]:
    """Return the pixels that `picture` decodes: uint8 (H, W, 3) RGB. Raises ImageError as it does."""
    raw_HW3 = _raw(_checked(data, formats), max_pixels)
    # A copy, because Pillow's own memory and the data are read-only, and torch warns of such arrays.
    return np.array(picture(data, max_pixels, formats) if raw_HW3 is None else raw_HW3)


def picture(data: bytes, max_pixels: int = MAX_PIXELS, formats: Sequence[str] = FORMATS) -> Image.Image:
    """Return an encoded JPEG, PNG or WebP, decoded, as an RGB picture that is turned upright by its EXIF orientation.

    Grayscale, palette and CMYK become RGB; of 16 bits, 0..65535 becomes 0..255; transparency is laid over white; of
    several frames the first counts. `formats` are Pillow's names of those that are read. Raw pixels are taken as they
    are: ``P6 W H 255``, white space, W * H * 3 bytes (binary PPM). Raises ImageError: empty, unreadable or truncated
    data, another format, more than ``max_pixels``, MAX_SIDE or MAX_BYTES.
    """
    raw_HW3 = _raw(_checked(data, formats), max_pixels)
    if raw_HW3 is not None:
        return Image.fromarray(raw_HW3)
    with _open(data, formats) as image:
        _check_size(*image.size, max_pixels)
        try:
            image.load()
        except Exception as error:  # Pillow's decoders raise most kinds on broken data.
            raise ImageError(
                f"image: the {image.format} data is broken or truncated ({_one_line(error)}); save the file again"
            ) from error
        turn = _UPRIGHT.get(_orientation(image))
        rgb = _to_rgb(image)
    return rgb if turn is None else rgb.transpose(turn)


def load(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Decode a file of any of FILE_FORMATS. ImageError names the path, also where it is missing or cannot be read."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ImageError(f"image {os.fspath(path)}: cannot be read ({reason}); check the path") from error
    try:
        return decode(data, max_pixels, FILE_FORMATS)
    except ImageError as error:
        raise ImageError(f"image {os.fspath(path)}: {str(error).removeprefix('image: ')}") from error


def opened(data: bytes) -> Image.Image:
    """Open a file's content, of any of FILE_FORMATS, which reads its header only. Raises ImageError."""
    return _open(data, FILE_FORMATS)


def _open(data: bytes, formats: Sequence[str]) -> Image.Image:
    readable = _readable(data, formats)
    try:
        with warnings.catch_warnings():
            # Pillow warns from 89 megapixels on; the limit here is ours.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data), formats=readable)
    except Image.DecompressionBombError as error:
        raise ImageError(f"image: too large ({_one_line(error)}); make it smaller") from error
    except Exception as error:  # Pillow's parsers raise most kinds on broken data.
        raise ImageError(
            f"image: got {len(data)} bytes beginning {data[:8]!r}, "
            f"expected a readable {_listed(formats)}; convert the image"
        ) from error


def _readable(data: bytes, formats: Sequence[str]) -> list[str]:
    """Return those of the formats that Pillow reads here; ImageError where the data is of another of them."""
    brand = _BRANDS.get(data[8:12], "") if data[4:8] == b"ftyp" else ""
    if brand == "HEIF" and "HEIF" in formats and importlib.util.find_spec("pillow_heif"):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    if brand in formats and brand not in Image.OPEN:
        package = {"AVIF": "Pillow>=11.3", "HEIF": "slime-serve[heic]"}[brand]
        raise ImageError(f"image: is {_listed([brand])}, which needs another package; pip install '{package}'")
    return [each for each in formats if each in Image.OPEN]


def _listed(formats: Sequence[str]) -> str:
    names = [{"WEBP": "WebP", "HEIF": "HEIC"}.get(name, name) for name in formats]
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _checked(data: bytes, formats: Sequence[str]) -> bytes:
    if not data:
        raise ImageError(f"image: got 0 bytes, expected an encoded {_listed(formats)}; send the file's content")
    if len(data) > MAX_BYTES:
        raise ImageError(
            f"image: got {len(data) / 1e6:.0f} MB, expected at most {MAX_BYTES / 1e6:.0f}; make it smaller"
        )
    return data


def _raw(data: bytes, max_pixels: int) -> npt.NDArray[np.uint8] | None:
    """Return the pixels of data that are nothing but pixels, None of others."""
    found = _RAW.match(data)
    if found is None:
        return None
    width, height, start = int(found[1]), int(found[2]), found.end()
    _check_size(width, height, max_pixels)
    size = len(data) - start
    if size != width * height * 3:
        raise ImageError(
            f"image: got {size} bytes of raw pixels, expected {width} x {height} x 3; send the whole picture"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(height, width, 3)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"image: got {width} x {height} pixels, expected at least 1 x 1; save the file again")
    if width * height > max_pixels:
        raise ImageError(
            f"image: got {width} x {height} = {width * height / 1e6:.1f} megapixels, "
            f"expected at most {max_pixels / 1e6:g}; make it smaller"
        )
    if max(width, height) > MAX_SIDE:
        raise ImageError(
            f"image: got {width} x {height} pixels, expected at most {MAX_SIDE} a side; cut it, or make it smaller"
        )


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # Broken metadata does not make the picture unusable.
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        # Pillow clips 16 bits to 8 instead of scaling them.
        values = np.asarray(image)
        if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
            raise ImageError(
                f"image: has {values.dtype} values from {values.min():g} to {values.max():g}, "
                "expected 8 or 16 bits a channel, without signs; scale them and save the image again"
            )
        wide = values.astype(np.uint32)
        return Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
