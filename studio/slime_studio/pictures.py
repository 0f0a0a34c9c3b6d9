"""Takes images in: within a server's limits, upright, in a form that every browser shows.

What a browser shows as it is, upright JPEG, PNG and WebP of 8 bits, is kept byte by byte; all else becomes a PNG.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from slime_client.images import saved
from slime_image import FILE_FORMATS, ImageError, decode, opened
from slime_studio.errors import StudioError

_SHOWN = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_SMALL = 360  # longest side of a small picture
_ORIENTATION_TAG = 0x0112


@dataclass(frozen=True, kw_only=True)
class Taken:
    """An image as it is kept: its bytes, its file's ending, its size, its pixels' sha256, and a small JPEG of it."""

    data: bytes
    ending: str
    width: int
    height: int
    digest: str
    small: bytes


def take(data: bytes, name: str) -> Taken:
    """Read an uploaded image. Raises StudioError, in one line, for what the server would refuse too."""
    try:
        pixels_HW3 = decode(data, formats=FILE_FORMATS)
        with opened(data) as image:
            ending = _SHOWN.get(image.format or "", "")
            upright = image.getexif().get(_ORIENTATION_TAG, 1) == 1
            plain = image.mode in ("RGB", "L", "P") and getattr(image, "n_frames", 1) == 1
    except ImageError as error:
        raise StudioError(f"{name}: {str(error).removeprefix('image: ')}") from error
    height, width, _ = pixels_HW3.shape
    if not (ending and upright and plain):
        data, ending = encoded(pixels_HW3), "png"
    digest = hashlib.sha256(f"{width}x{height}".encode() + pixels_HW3.tobytes()).hexdigest()
    return Taken(data=data, ending=ending, width=width, height=height, digest=digest, small=small(pixels_HW3))


def encoded(pixels_HW3: npt.NDArray[np.uint8]) -> bytes:
    """Return RGB pixels as a PNG, quickly."""
    return saved(Image.fromarray(pixels_HW3), "PNG", compress_level=1)


def small(pixels_HW3: npt.NDArray[np.uint8], side: int = _SMALL) -> bytes:
    """Return a JPEG of RGB pixels whose longest side is `side` at most; no side is shorter than a pixel."""
    picture = Image.fromarray(pixels_HW3)
    scale = min(1.0, side / max(picture.size))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return saved(picture.resize(size, Image.Resampling.BILINEAR), "JPEG", quality=82)
