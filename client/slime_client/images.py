"""What the caller calls an image, as the encoded bytes the server wants; and back, to draw on.

Paths and bytes go to the server as they are: it decodes, orients and judges them. Arrays and RGB PIL images go as raw
pixels (binary PPM: a header of one line, then the array), which costs no codec on either side; or, for slow networks,
as a fast PNG. PIL images of other modes always go as PNG, so that the server's rules for grey, palettes and alpha hold.
"""

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, Union

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from slime_client.errors import INVALID_ARGUMENT, SegmenterError
from slime_client.files import MAX_BYTES, read_file

ImageLike: TypeAlias = Union[str, "os.PathLike[str]", bytes, npt.NDArray[np.uint8], Image.Image]

_ACCEPTED = "a path, bytes, a uint8 array (H, W, 3) or a PIL image"
_FAST = 1
# The others have no PNG form.
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
_RGB_MODES = frozenset({"CMYK", "YCbCr", "LAB", "HSV", "RGBX", "RGBa", "La", "PA"})


@dataclass(frozen=True, kw_only=True)
class EncodedImage:
    """One image as it is sent.

    Attributes:
        data: an encoded picture (JPEG, PNG, WebP, PPM; the server judges).
        label: what to call it in a message: its path, or "image bytes" and the like.
        pixels: how many its mask will have, 0 where only decoding would tell.
    """

    data: bytes
    label: str
    pixels: int = 0

    def __post_init__(self) -> None:
        if not self.data:
            raise _bad(self.label, "empty", "a JPEG, PNG or WebP image")
        if len(self.data) > MAX_BYTES:
            raise _bad(self.label, f"{len(self.data) >> 20} MiB", f"at most {MAX_BYTES >> 20}; make it smaller")


def encode(image: ImageLike, *, compress: bool = False) -> EncodedImage:
    """Turn any accepted image into encoded bytes.

    Args:
        image: a path; bytes of a JPEG, PNG or WebP; a uint8 RGB array (H, W, 3); a PIL image.
        compress: arrays and PIL images as PNG rather than as raw pixels.

    Raises:
        SegmenterError: INVALID_ARGUMENT, naming what was given and what is accepted.
    """
    if isinstance(image, (str, os.PathLike)):
        path = Path(image)
        return EncodedImage(data=read_file(path), label=str(path))
    if isinstance(image, (bytes, bytearray, memoryview)):
        return EncodedImage(data=bytes(image), label="image bytes")
    if isinstance(image, np.ndarray):
        return _encoded(_from_array(image), "image array", compress)
    if isinstance(image, Image.Image):
        return _encoded(_encodable(image), "PIL image", compress)
    raise _bad("image", type(image).__name__, _ACCEPTED)


def decode(image: EncodedImage) -> Image.Image:
    """The image as people see it: RGB, EXIF-oriented, alpha over white. For drawing only.

    Raises:
        SegmenterError: INVALID_ARGUMENT when Pillow cannot read it.
    """
    try:
        with Image.open(io.BytesIO(image.data)) as opened:
            return _rgb(ImageOps.exif_transpose(opened))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _bad(image.label, str(error), "a readable JPEG, PNG or WebP image") from error


def _from_array(array_HWC: npt.NDArray[Any]) -> Image.Image:
    shape = array_HWC.shape
    if array_HWC.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise _bad("image array", f"{array_HWC.dtype} {shape}", "uint8 (H, W, 3), RGB in 0..255")
    return Image.fromarray(np.ascontiguousarray(array_HWC))


def _encodable(image: Image.Image) -> Image.Image:
    # A PIL image opened from a camera's JPEG is still turned; the server would turn the file itself.
    try:
        upright = ImageOps.exif_transpose(image)
    except OSError as error:
        raise _bad("PIL image", str(error), "an image that can be read to its end") from error
    if 0 in upright.size:
        raise _bad("PIL image", f"size {upright.size}", "at least 1 x 1 pixel")
    if upright.mode in _PNG_MODES:
        return upright
    if upright.mode in _RGB_MODES:
        return upright.convert("RGBA" if upright.mode in ("RGBa", "La", "PA") else "RGB")
    raise _bad("PIL image", f"mode {upright.mode}", "RGB or grey; convert it first")


def _encoded(image: Image.Image, label: str, compress: bool) -> EncodedImage:
    as_png = compress or image.mode != "RGB"
    return EncodedImage(data=_png(image) if as_png else _raw(image), label=label, pixels=image.width * image.height)


def _raw(image: Image.Image) -> bytes:
    return b"P6\n%d %d\n255\n" % image.size + image.tobytes()


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=_FAST)
    return buffer.getvalue()


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow clips 16-bit grey to white instead of scaling it.
        grey = np.asarray(image).astype(np.uint32) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, layer).convert("RGB")


def _bad(subject: str, got: str, expected: str) -> SegmenterError:
    return SegmenterError(f"{subject}: got {got}, expected {expected}", INVALID_ARGUMENT)
