"""Mask files: one mask of all parts (PNG or .npy), or a black and white mask for each part; and the image beside them.

Without a legend, the values of a mask of all parts are part indices; with one, every PNG is read by its colours,
palette and grey alike.

A pixel of a black and white mask counts as painted where it is opaque, in pictures with transparency; else where it is
not 0, in masks of two values; else from 128 on, so that smoothed edges and scans do no harm. Where the masks of parts
overlap, the later part is kept.

Shape suffixes: H, W image sides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from slime_optimize.data.annotations.example import (
    Example,
    check_ids,
    check_not_empty,
    check_painted,
    index_of,
    tell_ignored,
)
from slime_optimize.data.annotations.legend import Colour, Legend, by_colour, hexadecimal, load_legend
from slime_optimize.data.annotations.pictures import fitted, read_picture
from slime_optimize.errors import InputError, first_line
from slime_was.options import MAX_PARTS

_GREY = ("1", "L", "I;16", "I;16B", "I")


@dataclass(frozen=True, kw_only=True)
class Mask:
    """Part indices (H,W) uint8, and the colours that a palette gives to those that occur; empty without a palette."""

    values_HW: npt.NDArray[np.uint8]
    colours: Mapping[int, Colour]


def load_mask(path: Path, legend: Legend | None = None, parts: Sequence[str] | None = None) -> Mask:
    """Load a mask of all parts: .npy of indices, or a PNG of indices, palette values or (with a legend) colours.

    With a legend, the indices are those of `parts`, or of the legend's own names. Raises InputError, in one line.
    """
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
    """Open and decode a PNG; InputError for anything else, such as JPEG, which does not keep pixels' values."""
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
    """Load a .npy file of whole numbers or booleans; InputError for anything else, pickles included."""
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
    """Read black and white as 0 and 1 where there are only two parts: nothing else can be meant."""
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


def load_layers(image: Path, layers: Iterable[tuple[str, Path]], parts: Sequence[str]) -> Example:
    """Load an image and paint its named black and white masks in the order of `parts`; a part may have several."""
    picture = read_picture(image)
    mask_HW = np.zeros(picture.shape, np.uint8)
    numbered = [(index_of(name, parts, f"mask {path}"), path) for name, path in layers]
    for index, path in sorted(numbered):
        mask_HW[fitted(painted(path).astype(np.uint8), picture, f"mask {path}") > 0] = index
    check_not_empty(mask_HW, f"masks of {image}")
    return Example(name=image.stem, image_HW3=picture.image_HW3, mask_HW=mask_HW, digest=picture.digest)


def painted(path: Path) -> npt.NDArray[np.bool_]:
    """Return where a black and white PNG or .npy is painted, (H,W) bool; InputError for anything else."""
    if path.suffix.lower() == ".npy":
        array = load_array(path)
        if array.ndim != 2:
            raise InputError(f"mask {path}: is of shape {array.shape}, expected (height, width)")
        return _cut(array)
    with open_png(path) as image:
        if image.has_transparency_data:
            alpha_HW = np.array(image.convert("RGBA"))[..., 3]
            if (alpha_HW < 255).any():
                return alpha_HW >= 128
        return _cut(np.array(image if image.mode.startswith("I") else image.convert("L")))


def _cut(values_HW: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    half = 128 if values_HW.max() < 256 else 32768  # 16 bits of grey
    two = len(np.unique(values_HW)) <= 2
    return np.asarray(values_HW > 0 if two else values_HW >= half)


def load_example(image: Path, mask: Path, parts: Sequence[str], legend: Legend | None = None) -> Example:
    """Load one image with its mask; ImageError or InputError, in one line, when it cannot be used with `parts`."""
    return _load(image, mask, parts, legend)[0]


def load_pairs(
    pairs: Iterable[tuple[Path, Path]], parts: Sequence[str], legend: Legend | None = None
) -> tuple[Example, ...]:
    """Load images with masks that belong together; InputError also for an empty mask and palettes that disagree."""
    examples: list[Example] = []
    shown: dict[int, tuple[Path, Colour]] = {}
    for image, mask in pairs:
        example, colours = _load(image, mask, parts, legend)
        check_not_empty(example.mask_HW, f"mask {mask}")
        _check_palette(mask, colours, shown)
        examples.append(example)
    return tuple(examples)


def load_training(
    images: Sequence[Path], masks: Sequence[Path], parts: Sequence[str], legend: Path | None = None
) -> list[Example]:
    """Load the images to learn from; InputError also when a part other than the background is in no mask."""
    if len(images) != len(masks):
        raise InputError(
            f"training data: got {len(images)} images and {len(masks)} masks, expected a mask for each image, in order"
        )
    pairs = zip(images, masks, strict=True)
    examples = load_pairs(pairs, parts, load_legend(legend) if legend is not None else None)
    subject = f"mask {', '.join(str(mask) for mask in masks)}"
    check_painted(examples, parts, subject)
    tell_ignored(examples, subject)
    return list(examples)


def _load(image: Path, mask: Path, parts: Sequence[str], legend: Legend | None) -> tuple[Example, Mapping[int, Colour]]:
    picture = read_picture(image)
    loaded = load_mask(mask, legend, parts)
    mask_HW = fitted(loaded.values_HW, picture, f"mask {mask}")
    check_ids(mask_HW, parts, f"mask {mask}")
    example = Example(name=image.stem, image_HW3=picture.image_HW3, mask_HW=mask_HW, digest=picture.digest)
    return example, loaded.colours


def _check_palette(mask: Path, colours: Mapping[int, Colour], shown: dict[int, tuple[Path, Colour]]) -> None:
    """Raise InputError where palettes differ: an editor that makes one for each picture numbers colours anew."""
    for index, colour in colours.items():
        other, before = shown.setdefault(index, (mask, colour))
        if before != colour:
            raise InputError(
                f"mask {mask}: its palette shows id {index} as {hexadecimal(colour)}, {other} as "
                f"{hexadecimal(before)}, expected one palette for all; say what the colours mean with --legend"
            )
