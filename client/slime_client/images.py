"""What the caller calls an image, as the encoded bytes the server wants; and files, read and written whole.

JPEG, PNG and WebP in files and bytes go to the server as they are: it decodes, orients and judges them. TIFF, BMP, GIF,
AVIF and HEIC, which it does not take, go as PNG, of several frames the first. Arrays and RGB PIL images go as raw
pixels (binary PPM: a header of one line, then the array), which costs no codec on either side; or, for slow networks,
as a fast PNG. PIL images of other modes always go as PNG, so that the server's rules for grey, palettes and alpha hold.
"""

import importlib.util
import io
import os
import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, Union

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from slime_client.errors import INVALID_ARGUMENT, SegmenterError

ImageLike: TypeAlias = Union[str, "os.PathLike[str]", bytes, npt.NDArray[np.uint8], Image.Image]

# Protobuf's own limit is 2 GiB a message; a picture that large is a mistake in the path.
MAX_BYTES = 1 << 30
_ACCEPTED = "a path, bytes, a uint8 array (H, W, 3) or a PIL image"
_FAST = 1
# How data begins that the server reads.
_TAKEN = (b"\xff\xd8", b"\x89PNG", b"P6")
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"mif1")
_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")
# The others have no PNG form.
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
_RGB_MODES = frozenset({"CMYK", "YCbCr", "LAB", "HSV", "RGBX", "RGBa", "La", "PA"})


@dataclass(frozen=True, kw_only=True)
class EncodedImage:
    """One image as it is sent.

    Attributes:
        data: an encoded picture (JPEG, PNG, WebP, PPM; the server judges).
        label: its name in error messages: its path, or "image bytes" and the like.
        pixels: how many its mask will have, 0 where only decoding would tell.
        note: what was left out, for people.
    """

    data: bytes
    label: str
    pixels: int = 0
    note: str = ""

    def __post_init__(self) -> None:
        if not self.data:
            raise bad(self.label, "empty", "a JPEG, PNG or WebP image")
        if len(self.data) > MAX_BYTES:
            raise bad(self.label, f"{len(self.data) >> 20} MiB", f"at most {MAX_BYTES >> 20}; make it smaller")


def encode(image: ImageLike, *, compress: bool = False) -> EncodedImage:
    """Turn an image into encoded bytes: a path, the bytes of a file, a uint8 RGB array (H, W, 3), a PIL image.

    With `compress`, arrays and PIL images become PNG rather than raw pixels.

    Raises:
        SegmenterError: INVALID_ARGUMENT, naming what was given and what is accepted.
    """
    if isinstance(image, (str, os.PathLike)):
        path = Path(image)
        return _taken(_read_file(path), str(path))
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _taken(bytes(image), "image bytes")
    if isinstance(image, np.ndarray):
        picture, label = _from_array(image), "image array"
    elif isinstance(image, Image.Image):
        picture, label = encodable(image), "PIL image"
    else:
        raise bad("image", type(image).__name__, _ACCEPTED)
    if compress or picture.mode != "RGB":
        data = saved(picture, "PNG", compress_level=_FAST)
    else:
        data = b"P6\n%d %d\n255\n" % picture.size + picture.tobytes()
    return EncodedImage(data=data, label=label, pixels=picture.width * picture.height)


def decode(image: EncodedImage) -> Image.Image:
    """Return the image as people see it: RGB, EXIF-oriented, alpha over white. For drawing only.

    Raises:
        SegmenterError: INVALID_ARGUMENT when Pillow cannot read it.
    """
    try:
        with Image.open(io.BytesIO(image.data)) as opened:
            return as_rgb(ImageOps.exif_transpose(opened))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise bad(image.label, str(error), "a readable JPEG, PNG or WebP image") from error


def as_rgb(upright: Image.Image) -> Image.Image:
    """Return an upright picture as RGB: alpha over white, 16-bit grey scaled to 8."""
    if upright.mode.startswith("I"):
        # Pillow clips 16-bit grey to white instead of scaling it.
        grey = np.asarray(upright).astype(np.uint32) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    layer = upright.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """Return a picture as the content of a file of Pillow's format `kind`."""
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


def write_file(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write `data`, whole or in pieces, under `path`, replacing what is there only once all of it is on disk.

    Raises:
        SegmenterError: INVALID_ARGUMENT when the folder is missing or cannot be written.
    """
    # Not tempfile: its files are readable by the owner alone, and os.replace would keep that.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
        os.replace(temporary, path)
    except OSError as error:
        reason = f"cannot be written ({error.strerror or error})"
        raise _unusable(path, reason, "check that its folder exists and has room") from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what a process that was killed in `write_file` has left in a folder."""
    for path in folder.glob(".*.tmp"):
        if _UNFINISHED.fullmatch(path.name):
            path.unlink(missing_ok=True)


def bad(subject: str, got: str, expected: str) -> SegmenterError:
    """Return the error for an argument that is not as expected."""
    return SegmenterError(f"{subject}: got {got}, expected {expected}", INVALID_ARGUMENT)


def _taken(data: bytes, label: str) -> EncodedImage:
    """Return the data as it is where the server takes its format, or nobody knows it; else its first frame as PNG."""
    if not data or data.startswith(_TAKEN) or data[8:12] == b"WEBP":
        return EncodedImage(data=data, label=label)
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC:
        if importlib.util.find_spec("pillow_heif") is None:
            raise bad(label, "HEIC", "JPEG, PNG or WebP, or HEIC with: pip install 'slime-serve[heic]'")
        import pillow_heif

        pillow_heif.register_heif_opener()
    try:
        picture = Image.open(io.BytesIO(data))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return EncodedImage(data=data, label=label)
    with picture:
        frames = getattr(picture, "n_frames", 1)
        note = f"has {frames} frames, of which the first is segmented; --video takes all" if frames > 1 else ""
        made = encodable(picture, label)
    png = saved(made, "PNG", compress_level=_FAST)
    return EncodedImage(data=png, label=label, pixels=made.width * made.height, note=note)


def _read_file(path: Path) -> bytes:
    try:
        if not path.exists():
            raise _unusable(path, "no such file", "check the path")
        if not path.is_file():
            raise _unusable(path, "not a file", "give the path of one image")
        if path.stat().st_size > MAX_BYTES:
            raise _unusable(path, f"larger than {MAX_BYTES >> 20} MiB", "give the path of one image")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _unusable(path, f"cannot be read ({reason})", "check its permissions") from error


def _unusable(path: Path, found: str, next_step: str) -> SegmenterError:
    return SegmenterError(f"{path}: {found}; {next_step}", INVALID_ARGUMENT)


def _from_array(array_HWC: npt.NDArray[Any]) -> Image.Image:
    shape = array_HWC.shape
    if array_HWC.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise bad("image array", f"{array_HWC.dtype} {shape}", "uint8 (H, W, 3), RGB in 0..255")
    return Image.fromarray(np.ascontiguousarray(array_HWC))


def encodable(image: Image.Image, label: str = "PIL image") -> Image.Image:
    """Return a PIL image upright, in a mode that PNG has."""
    # A PIL image opened from a camera's JPEG is still turned; the server would turn the file itself.
    try:
        upright = ImageOps.exif_transpose(image)
    except OSError as error:
        raise bad(label, str(error), "an image that can be read to its end") from error
    if 0 in upright.size:
        raise bad(label, f"size {upright.size}", "at least 1 x 1 pixel")
    if upright.mode in _PNG_MODES:
        return upright
    if upright.mode in _RGB_MODES:
        return upright.convert("RGBA" if upright.mode in ("RGBa", "La", "PA") else "RGB")
    raise bad(label, f"mode {upright.mode}", "RGB or grey; convert it first")
