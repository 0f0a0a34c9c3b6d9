"""Small annotated pictures on disk, and the check that a mistake is told in one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from painting import PARTS, paint
from slime_image import ImageError
from slime_optimize.errors import InputError

COLOURS = np.array([[0, 0, 0], [200, 30, 30], [20, 180, 40]], np.uint8)
LEGEND = {"#000000": "background", "#c81e1e": "red", "#14b428": "green"}
ORIENTATION = 0x0112
Bytes = npt.NDArray[np.uint8]


def save(array: npt.ArrayLike, path: Path, mode: str | None = None, **options: Any) -> Path:
    """Writes an array as a picture, made into another mode first where one is named."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.asarray(array))
    (picture if mode is None else picture.convert(mode)).save(path, **options)
    return path


def write(value: object, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def palette_png(mask_HW: Bytes, path: Path, colours: npt.ArrayLike = COLOURS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(mask_HW).convert("P")
    picture.putpalette(np.asarray(colours).ravel().tolist())
    picture.save(path)
    return path


def folder_of(folder: Path, write_mask: Callable[[Bytes, Path], object], count: int = 2, suffix: str = ".png") -> Path:
    """images/N.jpg, and masks/N written by `write_mask`; no names of parts."""
    for index in range(count):
        image, mask = paint(index)
        save(image, folder / "images" / f"{index}.jpg")
        (folder / "masks").mkdir(exist_ok=True)
        write_mask(mask, folder / "masks" / f"{index}{suffix}")
    return folder


def indexed(folder: Path, count: int = 2, parts: Sequence[str] | None = PARTS) -> Path:
    folder_of(folder, save, count)
    if parts is not None:
        write(list(parts), folder / "parts.json")
    return folder


def refused(call: Callable[[], object], *expected: str) -> None:
    """InputError or ImageError, one line, with all these words."""
    with pytest.raises((InputError, ImageError)) as caught:
        call()
    told = str(caught.value)
    assert "\n" not in told and len(told) < 1000
    for words in expected:
        assert words in told, told
