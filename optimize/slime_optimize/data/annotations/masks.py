"""Mask files that hold all parts, PNG, TIFF, BMP, GIF or .npy, and the image beside them.

Without a legend, the values of a mask of all parts are part indices, but for palettes and colours that are known: there
colours decide. With one, every PNG is read by its colours, palette and grey alike.

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
    IGNORED,
    Annotated,
    Example,
    check_ids,
    check_not_empty,
    check_painted,
    tell_remarks,
)
from slime_optimize.data.annotations.legend import Colour, Legend, by_colour, hexadecimal, load_legend
from slime_optimize.data.annotations.palettes import known_palette, own_palette
from slime_optimize.data.annotations.pictures import fitted, read_picture
from slime_optimize.errors import InputError, first_line, tell
from slime_was.options import MAX_PARTS

_GREY = ("1", "L", "I;16", "I;16B", "I")
_COLOURED = ("RGB", "RGBA", "LA")
_LOSSLESS = ("PNG", "TIFF", "BMP", "GIF")
_LOSSY = ("jpeg", "tiff_jpeg", "webp")  # of TIFF
_BIT_DEPTH = 24  # where a PNG says how many bits a value has
_BITS_PER_SAMPLE = 258  # the tag of TIFF for that


@dataclass(frozen=True, kw_only=True)
class Mask:
    """Part indices (H,W) uint8, and the colours that an unknown palette gives to those that occur."""

    values_HW: npt.NDArray[np.uint8]
    colours: Mapping[int, Colour]


def load_mask(path: Path, legend: Legend | None = None, parts: Sequence[str] | None = None) -> Mask:
    """Load a mask of all parts: .npy of indices, or a PNG of indices, palette values or (with a legend) colours.

    With a legend, the indices are those of `parts`, or of the legend's own names. Raises InputError, in one line.
    """
    if path.suffix.lower() == ".npy":
        return _from_array(load_array(path), path, legend, parts)
    with open_mask(path) as image:
        if legend is not None:
            return Mask(values_HW=by_colour(_rgba(image, path), legend, parts, f"mask {path}"), colours={})
        count = MAX_PARTS if parts is None else len(parts)
        if image.mode == "P":
            return _from_palette(image, path, count)
        if image.mode in _COLOURED:
            return _from_colours(image, path, count)
        if image.mode not in _GREY:
            raise _unknown_colours(image, path)
        values_HW = _indices(np.array(image), f"mask {path}")
        return Mask(values_HW=_grey(values_HW, _depth(image, path), count), colours={})


def open_mask(path: Path) -> Image.Image:
    """Open and decode a PNG, TIFF, BMP or GIF; InputError for anything that does not keep pixels' values, as JPEG."""
    try:
        image = Image.open(path)
        image.load()
    except FileNotFoundError as error:
        raise InputError(f"mask {path}: no such file") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(
            f"mask {path}: not a readable picture ({first_line(error)}); expected a PNG or .npy"
        ) from error
    frames = getattr(image, "n_frames", 1)
    if image.format in _LOSSLESS and str(image.info.get("compression")) not in _LOSSY and frames == 1:
        return image
    image.close()
    if frames > 1:
        raise InputError(f"mask {path}: has {frames} frames, expected one; save the one as PNG")
    raise InputError(
        f"mask {path}: is a {image.format} of mode {image.mode}, expected a PNG or .npy, "
        "which keep every pixel's value; save it as PNG"
    )


def load_array(path: Path) -> npt.NDArray[Any]:
    """Load a .npy file of whole numbers or booleans, floats that are whole numbers included, without sides of 1.

    Raises InputError for anything else, such as pickles, fractions, NaN, and several arrays.
    """
    try:
        # Mapped first: a header that promises more than the file holds then costs no memory.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError(f"mask {path}: no such file") from error
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"mask {path}: not a readable .npy array ({first_line(error)})") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise InputError(f"mask {path}: holds several arrays, expected one of whole numbers, (height, width)")
    if array.dtype.kind not in "buif" or array.size == 0:
        raise InputError(
            f"mask {path}: holds {array.dtype} {array.shape}, expected whole numbers of shape (height, width)"
        )
    whole = np.array(array)
    if array.dtype.kind == "f":
        if not (np.isfinite(whole).all() and (whole == np.round(whole)).all() and np.abs(whole).max() < 2**31):
            raise InputError(
                f"mask {path}: holds {array.dtype} with fractions, NaN or very large numbers, expected whole numbers; "
                "save the part numbers themselves, for scores their argmax"
            )
        whole = whole.astype(np.int64)
    return whole.squeeze() if whole.ndim == 3 and 1 in (whole.shape[0], whole.shape[2]) else whole


def _from_array(array: npt.NDArray[Any], path: Path, legend: Legend | None, parts: Sequence[str] | None) -> Mask:
    if array.ndim == 2 and legend is None:
        values_HW = _indices(array, f"mask {path}")
        return Mask(values_HW=_black_and_white(values_HW, MAX_PARTS if parts is None else len(parts)), colours={})
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


def _grey(values_HW: npt.NDArray[np.uint8], depth: int, count: int) -> npt.NDArray[np.uint8]:
    """Return the numbers of a grey picture: those of 2 and 4 bits were spread over 0..255 to show them as grey."""
    spread_HW = _black_and_white(values_HW, count)
    if depth in (2, 4) and spread_HW is values_HW:
        return values_HW // np.uint8(255 // (2**depth - 1))
    return spread_HW


def _depth(image: Image.Image, path: Path) -> int:
    """Return how many bits the file has for a value of a PNG or TIFF; 8 for others."""
    if image.format == "PNG":
        with path.open("rb") as file:
            return file.read(_BIT_DEPTH + 1)[_BIT_DEPTH]
    return int(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,))[0])


def _black_and_white(values_HW: npt.NDArray[np.uint8], count: int) -> npt.NDArray[np.uint8]:
    """Read black and white as 0 and 1 where there are only two parts: nothing else can be meant."""
    if count == 2 and set(np.unique(values_HW).tolist()) == {0, 255}:
        return values_HW // np.uint8(255)
    return values_HW


def _from_palette(image: Image.Image, path: Path, count: int) -> Mask:
    """Read a palette PNG: by its indices, or by its colours where these are of a known palette in another order."""
    values_HW, flat = np.array(image), image.getpalette("RGB") or []
    used = np.unique(values_HW).tolist()
    colours: dict[int, Colour] = {
        value: (flat[3 * value], flat[3 * value + 1], flat[3 * value + 2])
        for value in used
        if 3 * value + 2 < len(flat)
    }
    # The index of void may have any colour, or none.
    telling = {value: colour for value, colour in colours.items() if value != IGNORED}
    known = known_palette(telling.values(), count) if len(set(telling.values())) == len(telling) else None
    if known is None or set(used) - {IGNORED} - telling.keys():
        _check_own_colours(telling, values_HW, path)
        return Mask(values_HW=values_HW, colours=telling)
    numbers = {value: known.numbers[colour] for value, colour in telling.items()}
    if all(value == number for value, number in numbers.items()):
        return Mask(values_HW=values_HW, colours={})
    tell(f"mask {path}: its palette is {known.name} in another order; the colours are read, not the indices")
    table_V = np.full(256, IGNORED, np.uint8)
    table_V[list(numbers)] = list(numbers.values())
    return Mask(values_HW=table_V[values_HW], colours={})


def _check_own_colours(colours: Mapping[int, Colour], values_HW: npt.NDArray[np.uint8], path: Path) -> None:
    """Raise InputError where SLiMe Serve's colours are in another order, but not all colours are its own."""
    own = own_palette().numbers
    moved = [value for value, colour in colours.items() if own.get(colour, value) != value]
    if sum(colour in own for colour in colours.values()) < 2 or not moved:
        return
    others = [(hexadecimal(c), np.count_nonzero(values_HW == value)) for value, c in colours.items() if c not in own]
    some = ", ".join(f"{colour} ({pixels} pixels)" for colour, pixels in others[:5]) or "more parts than were named"
    raise InputError(
        f"mask {path}: its palette has the colours of SLiMe Serve's in another order, so that its indices cannot be "
        f"believed, and beside them {some}; repaint those in the colours of the parts, or say all with --legend"
    )


def _from_colours(image: Image.Image, path: Path, count: int) -> Mask:
    """Read a PNG of colours that are all of a known palette; what is transparent is background."""
    rgba_HW4 = _rgba(image, path)
    shown_HW = rgba_HW4[..., 3] > 0
    found = np.unique(rgba_HW4[shown_HW][:, :3], axis=0) if shown_HW.any() else np.zeros((0, 3), np.uint8)
    colours: list[Colour] = [(red, green, blue) for red, green, blue in found[:257].tolist()]
    known = known_palette(colours, count) if len(colours) <= 256 else None
    if known is None or not np.isin(rgba_HW4[..., 3], (0, 255)).all():
        raise _unknown_colours(image, path)
    tell(f"mask {path}: its colours are of {known.name} palette, and are read as the part numbers there")
    values_HW = np.zeros(shown_HW.shape, np.uint8)
    for colour in colours:
        values_HW[shown_HW & (rgba_HW4[..., :3] == colour).all(axis=2)] = known.numbers[colour]
    return Mask(values_HW=values_HW, colours={})


def _unknown_colours(image: Image.Image, path: Path) -> InputError:
    return InputError(
        f"mask {path}: is a PNG of mode {image.mode}, expected a PNG of grey or palette values, "
        "each the index of a part; say what its colours mean with --legend"
    )


def _rgba(image: Image.Image, path: Path) -> npt.NDArray[np.uint8]:
    if image.mode.startswith("I"):
        raise InputError(f"mask {path}: has 16 bits of grey, expected 8-bit colours for the legend")
    return np.array(image.convert("RGBA"))


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
    if shown:
        first = next(iter(shown.values()))[0]
        meaning = [f"{parts[index]} is {hexadecimal(shown[index][1])}" for index in sorted(shown)]
        tell(f"mask {first}: the indices of its palette are taken for part numbers: {', '.join(meaning)}")
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
    check_painted(Annotated(parts=tuple(parts), examples=examples, by_number=legend is None), subject)
    tell_remarks(examples, subject)
    return list(examples)


def _load(image: Path, mask: Path, parts: Sequence[str], legend: Legend | None) -> tuple[Example, Mapping[int, Colour]]:
    picture = read_picture(image)
    loaded = load_mask(mask, legend, parts)
    mask_HW = fitted(loaded.values_HW, picture, f"mask {mask}")
    check_ids(mask_HW, parts, f"mask {mask}")
    return picture.example(image.stem, mask_HW), loaded.colours


def _check_palette(mask: Path, colours: Mapping[int, Colour], shown: dict[int, tuple[Path, Colour]]) -> None:
    """Raise InputError where palettes differ: an editor that makes one for each picture numbers colours anew."""
    for index, colour in colours.items():
        other, before = shown.setdefault(index, (mask, colour))
        if before != colour:
            raise InputError(
                f"mask {mask}: its palette shows id {index} as {hexadecimal(colour)}, {other} as "
                f"{hexadecimal(before)}, expected one palette for all; say what the colours mean with --legend"
            )
