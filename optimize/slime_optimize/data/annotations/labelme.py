"""LabelMe JSON: one file for each image, with polygons, rectangles, circles and masks, painted in the file's order.

The picture inside the file (`imageData`) is used where there is one, else the file at `imagePath`. The labels are the
parts, in alphabetical order.

Shape suffixes: H, W image sides.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from slime_optimize.data.annotations.example import (
    Annotated,
    Example,
    NoAreaError,
    check_not_empty,
    index_of,
    parts_from,
    spelled,
    tell_left_out,
)
from slime_optimize.data.annotations.locating import Locator
from slime_optimize.data.annotations.pictures import (
    Picture,
    check_size,
    decode_picture,
    points,
    read_picture,
)
from slime_optimize.errors import InputError, first_line

Json = Mapping[str, Any]
# LabelMe writes the last two for rotated boxes.
_POLYGONS = ("polygon", "oriented_rectangle", "rotation")
_LEAST_POINTS = {"rectangle": 2, "circle": 2, "mask": 1} | dict.fromkeys(_POLYGONS, 3)


def is_labelme(content: object) -> bool:
    """Return whether a JSON document has the shapes of LabelMe's."""
    return isinstance(content, dict) and isinstance(content.get("shapes"), list)


def read_labelme(contents: Mapping[Path, Json], folder: Path, parts: Sequence[str] | None) -> Annotated:
    """Load one example from each file; InputError in one line for what cannot be used."""
    path = folder
    try:
        if parts is None:
            shapes = (shape for content in contents.values() for shape in content["shapes"])
            labels = sorted({spelled(shape["label"]) for shape in shapes})
            if not labels:
                raise InputError(
                    f"LabelMe {folder}: no file has a shape, all masks are empty; draw the parts, then save"
                )
            parts = parts_from(labels)
        locator = Locator(folders=(folder,))
        examples = []
        for path, content in contents.items():
            examples.append(_example(path, content, locator, parts))
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"LabelMe {path}: is not laid out as LabelMe JSON ({reason}); save it again") from error
    return Annotated(parts=tuple(parts), examples=tuple(examples))


def _example(path: Path, content: Json, locator: Locator, parts: Sequence[str]) -> Example:
    subject = f"LabelMe {path}"
    picture = _picture(path, content, locator)
    check_size(content.get("imageWidth"), content.get("imageHeight"), picture, subject)
    canvas = Image.new("L", picture.shape[::-1])
    drawn: list[int] = []
    without: list[NoAreaError] = []
    for number, shape in enumerate(content["shapes"]):
        this = f"{subject}: shape {number} ({shape['label']})"
        try:
            _draw(canvas, shape, index_of(shape["label"], parts, this), this)
            drawn.append(number)
        except NoAreaError as error:
            without.append(error)
    tell_left_out(without, drawn)
    mask_HW = np.array(canvas)
    check_not_empty(mask_HW, subject)
    return picture.example(path.stem, mask_HW)


def _picture(path: Path, content: Json, locator: Locator) -> Picture:
    if content.get("imageData"):
        return decode_picture(_bytes(content["imageData"], f"LabelMe {path}: imageData"), f"image in {path}")
    return read_picture(locator.find(str(content["imagePath"]), f"LabelMe {path}", path.parent))


def _bytes(text: str, subject: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"{subject}: is no base64 text ({first_line(error)}); save the file again") from error


def _draw(canvas: Image.Image, shape: Json, index: int, subject: str) -> None:
    kind = shape.get("shape_type") or "polygon"
    if kind not in _LEAST_POINTS:
        raise NoAreaError(
            f"{subject}: is a {kind}, which has no area, expected one of {', '.join(_LEAST_POINTS)}; draw a polygon"
        )
    found = points(shape["points"], (canvas.height, canvas.width), subject)
    if len(found) < _LEAST_POINTS[kind]:
        raise NoAreaError(f"{subject}: is a {kind} of {len(found)} points, expected {_LEAST_POINTS[kind]}; redraw it")
    if kind == "mask":
        _paste(canvas, shape, (round(found[0][0]), round(found[0][1])), index, subject)
        return
    draw = ImageDraw.Draw(canvas)
    if kind == "circle":
        radius = math.dist(*found[:2])
        draw.circle(found[0], radius, fill=index)
    elif kind == "rectangle":
        across, down = [x for x, _ in found], [y for _, y in found]
        draw.rectangle((min(across), min(down), max(across), max(down)), fill=index)
    else:
        draw.polygon(found, fill=index)


def _paste(canvas: Image.Image, shape: Json, corner: tuple[int, int], index: int, subject: str) -> None:
    """Paint a brush mask: a small PNG whose upper left pixel lies at the first point."""
    try:
        with Image.open(io.BytesIO(_bytes(shape["mask"], f"{subject}: mask")), formats=("PNG",)) as image:
            stamp = Image.fromarray((np.array(image.convert("L")) > 0).astype(np.uint8) * np.uint8(255))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{subject}: its mask is no readable PNG ({first_line(error)}); save it again") from error
    canvas.paste(index, (*corner, corner[0] + stamp.width, corner[1] + stamp.height), stamp)
