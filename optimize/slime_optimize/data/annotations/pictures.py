"""The pictures of annotations: read them, and lay masks over them.

Shape suffixes: H, W image sides.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from slime_image import FILE_FORMATS, ImageError, decode, load, opened
from slime_optimize.data.annotations.example import Example
from slime_optimize.data.annotations.palettes import own_palette
from slime_optimize.errors import InputError

# What is an image whatever lies beside it, and what may be the mask of one as well.
ALWAYS_IMAGES = (".jpg", ".jpeg", ".webp", ".avif", ".heic", ".heif")
IMAGE_SUFFIXES = (*ALWAYS_IMAGES, ".png", ".tif", ".tiff", ".bmp", ".gif")
_ORIENTATION_TAG = 0x0112
_QUARTER_TURNS = (5, 6, 7, 8)
Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An upright image (H,W,3) uint8 RGB, the EXIF orientation it was turned by (1: none), and the file's sha256.

    remarks: what was decided in reading it, for the person.
    """

    subject: str
    image_HW3: npt.NDArray[np.uint8]
    orientation: int
    digest: str
    remarks: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the upright image."""
        height, width, _ = self.image_HW3.shape
        return height, width

    def example(self, name: str, mask_HW: npt.NDArray[np.uint8]) -> Example:
        """Return the example of this picture and its mask (H,W)."""
        image_HW3 = self.image_HW3
        return Example(name=name, image_HW3=image_HW3, mask_HW=mask_HW, digest=self.digest, remarks=self.remarks)


def read_picture(path: Path) -> Picture:
    """Load the picture at `path`. Raises ImageError, naming the path."""
    image_HW3 = load(path)
    data = path.read_bytes()
    with opened(data) as image:
        _check_no_mask(image, path)
        orientation = _orientation(image)
        remarks = {
            "several frames, of which the first is taken": getattr(image, "n_frames", 1) > 1 and image.format != "MPO",
            "16 bits of grey, of which 0..65535 becomes 0..255": image.mode.startswith("I"),
        }
    return Picture(
        subject=f"image {path}",
        image_HW3=image_HW3,
        orientation=orientation,
        digest=hashlib.sha256(data).hexdigest(),
        remarks=tuple(remark for remark, holds in remarks.items() if holds),
    )


def _check_no_mask(image: Image.Image, path: Path) -> None:
    """Raise InputError for a mask that slime segment wrote, which lies beside its COCO JSON under the image's name."""
    if image.format != "PNG" or image.mode != "P":
        return
    flat, own = image.getpalette("RGB") or [], own_palette().numbers
    used = [index for _, index in image.getcolors() or [] if isinstance(index, int)]
    if len(used) > 1 and all(
        own.get((flat[3 * index], flat[3 * index + 1], flat[3 * index + 2])) == index for index in used
    ):
        raise InputError(
            f"image {path}: is a mask as slime segment writes it, expected the picture that was segmented; "
            "put that one in its place"
        )


def decode_picture(data: bytes, subject: str) -> Picture:
    """Decode a picture that lies inside an annotation file. Raises InputError."""
    try:
        image_HW3 = decode(data, formats=FILE_FORMATS)
    except ImageError as error:
        raise InputError(f"{subject}: {error}") from error
    digest = hashlib.sha256(data).hexdigest()
    return Picture(subject=subject, image_HW3=image_HW3, orientation=1, digest=digest)


def fitted(mask_HW: npt.NDArray[np.uint8], picture: Picture, subject: str) -> npt.NDArray[np.uint8]:
    """Return the mask (H,W) as it lies over the upright image.

    A mask of the upright image's size stays as it is. One of the size of the file's own, sideways pixels was painted by
    a program that ignores EXIF, and is turned as the image was. Any other size is an InputError.
    """
    if mask_HW.shape == picture.shape:
        return mask_HW
    if picture.orientation in _QUARTER_TURNS and mask_HW.shape == picture.shape[::-1]:
        return _turned(mask_HW, picture.orientation)
    raise InputError(
        f"{subject}: is {size(mask_HW.shape)}, expected {size(picture.shape)} as the {picture.subject}; "
        "paint the mask over the image itself"
    )


def check_size(width: object, height: object, picture: Picture, subject: str) -> None:
    """Raise InputError where an export says another size than the picture has: its coordinates would not fit."""
    if width is None or height is None or (height, width) == picture.shape:
        return
    sideways = picture.orientation in _QUARTER_TURNS and (width, height) == picture.shape
    raise InputError(
        f"{subject}: was drawn at {width}x{height}, but the {picture.subject} is {size(picture.shape)}"
        f"{' once turned upright by its EXIF tag' if sideways else ''}; "
        "expected one size, save the image upright and annotate that file"
    )


def size(shape: Sequence[int]) -> str:
    """Return WIDTHxHEIGHT for messages."""
    return f"{shape[1]}x{shape[0]}"


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # Broken metadata does not make the picture unusable.
        return 1


def _turned(mask_HW: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    mask = Image.fromarray(mask_HW)
    mask.getexif()[_ORIENTATION_TAG] = orientation
    return np.array(ImageOps.exif_transpose(mask))


def points(values: object, shape: tuple[int, int], subject: str) -> list[Point]:
    """Return the points of an outline, given as [[x, y], …] or [x, y, x, y, …].

    They are checked here, because rasterisers trust their numbers: InputError unless all are finite and lie on the
    image (height, width) or not far outside.
    """
    flat = values if isinstance(values, list) else None
    if flat is not None and any(isinstance(value, list) for value in flat):
        flat = [number for pair in flat for number in (pair if isinstance(pair, list) and len(pair) == 2 else [None])]
    if flat is None or len(flat) % 2 or not all(type(number) in (int, float) for number in flat):
        raise InputError(f"{subject}: its points are no pairs of numbers, expected [x, y] for each; export it again")
    found = list(zip(flat[0::2], flat[1::2], strict=True))
    height, width = shape
    for x, y in found:
        inside = math.isfinite(x) and math.isfinite(y) and -width <= x <= 2 * width and -height <= y <= 2 * height
        if not inside:
            raise InputError(
                f"{subject}: has the point ({x:g}, {y:g}), expected one on the image of {width}x{height} pixels; "
                "annotate the file that is read here"
            )
    return found
