"""Files of one whole mask: PNG of indices, palette or colours, and .npy.

Without a legend the values are part indices; with one, every PNG is read by its colours, palette and grey alike.

Shape suffixes: H, W image sides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from slime_optimize.data.annotations.colours import by_colour
from slime_optimize.data.annotations.legend import Colour, Legend
from slime_optimize.errors import InputError, first_line
from slime_was.options import MAX_PARTS

_GREY = ("1", "L", "I;16", "I;16B", "I")


@dataclass(frozen=True, kw_only=True)
class Mask:
    """values (H,W) uint8; the colours that a palette gives to the values that occur, empty without a palette."""

    values_HW: npt.NDArray[np.uint8]
    colours: Mapping[int, Colour]


def load(path: Path, legend: Legend | None = None, parts: Sequence[str] | None = None) -> Mask:
    """Reads .npy or PNG; with a legend the indices are those of `parts`, or of the legend's own."""
    if path.suffix.lower() == ".npy":
        return _from_array(load_array(path), path, legend, parts)
    with open_png(path) as image:
        if legend is not None:
            return Mask(values_HW=by_colour(_rgba(image, path), legend, parts, f"mask {path}"), colours={})
        if image.mode not in (*_GREY, "P"):
            raise InputError(
                f"mask {path}: is a PNG of mode {image.mode}, expected a PNG of grey or palette values, "
                "each the index of a part; say what its colours mean with --legend"
            )
        values_HW = _indices(np.array(image), f"mask {path}")
        return Mask(values_HW=_spread(values_HW, image.mode, parts), colours=_palette(image, values_HW))


def open_png(path: Path) -> Image.Image:
    """The decoded PNG; InputError for anything else, and for what loses pixels' values, such as JPEG."""
    try:
        image = Image.open(path)
        image.load()
    except FileNotFoundError as error:
        raise InputError(f"mask {path}: no such file") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(
            f"mask {path}: not a readable picture ({first_line(error)}); expected a PNG or .npy"
        ) from error
    if image.format != "PNG":
        raise InputError(
            f"mask {path}: is a {image.format} of mode {image.mode}, expected a PNG or .npy, "
            "which keep every pixel's value; save it as PNG"
        )
    return image


def load_array(path: Path) -> npt.NDArray[Any]:
    """A .npy file of whole numbers or truth values; InputError for anything else, pickles among it."""
    try:
        # Mapped first: a header that promises more than the file holds then costs no memory.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError(f"mask {path}: no such file") from error
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"mask {path}: not a readable .npy array ({first_line(error)})") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "bui" or array.size == 0:
        kind = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "several arrays"
        raise InputError(f"mask {path}: holds {kind}, expected whole numbers of shape (height, width)")
    return np.array(array)


def _from_array(array: npt.NDArray[Any], path: Path, legend: Legend | None, parts: Sequence[str] | None) -> Mask:
    if array.ndim == 2 and legend is None:
        return Mask(values_HW=_indices(array, f"mask {path}"), colours={})
    if array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8 and legend is not None:
        opaque_HW1 = np.full((*array.shape[:2], 1), 255, np.uint8)
        rgba_HW4 = np.concatenate([array, opaque_HW1], 2)
        return Mask(values_HW=by_colour(rgba_HW4, legend, parts, f"mask {path}"), colours={})
    expected = "(height, width)" if legend is None else "(height, width, 3) of uint8 colours for the legend"
    raise InputError(f"mask {path}: is {array.dtype} of shape {array.shape}, expected {expected}")


def _indices(values_HW: npt.NDArray[Any], subject: str) -> npt.NDArray[np.uint8]:
    low, high = int(values_HW.min()), int(values_HW.max())
    if low < 0 or high > 255:
        raise InputError(
            f"{subject}: has {values_HW.dtype} values from {low} to {high}, "
            f"expected part ids of 0 to {MAX_PARTS - 1} at most; save the part numbers themselves"
        )
    return values_HW.astype(np.uint8)


def _spread(values_HW: npt.NDArray[np.uint8], mode: str, parts: Sequence[str] | None) -> npt.NDArray[np.uint8]:
    """Of two parts only, black and white can mean nothing else than 0 and 1."""
    if parts is not None and len(parts) == 2 and mode == "L" and set(np.unique(values_HW).tolist()) == {0, 255}:
        return values_HW // np.uint8(255)
    return values_HW


def _palette(image: Image.Image, values_HW: npt.NDArray[np.uint8]) -> dict[int, Colour]:
    flat = image.getpalette("RGB") if image.mode == "P" else None
    colours: dict[int, Colour] = {}
    for value in np.unique(values_HW).tolist() if flat else ():
        red, green, blue = [*(flat or ())[3 * value : 3 * value + 3], 0, 0, 0][:3]
        colours[value] = (red, green, blue)
    return colours


def _rgba(image: Image.Image, path: Path) -> npt.NDArray[np.uint8]:
    if image.mode.startswith("I"):
        raise InputError(f"mask {path}: has 16 bits of grey, expected 8-bit colours for the legend")
    return np.array(image.convert("RGBA"))
