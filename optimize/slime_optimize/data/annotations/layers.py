"""Layers: black and white masks, one file or several for each part, painted over each other.

What is painted is what is opaque, in pictures with transparency; else the brighter of two values, or what is not black
of two colours; else, in grey with smoothed edges or a scan's noise, what is at least half bright. Anything else, such
as a mask of all parts or a coloured preview, is refused: cutting it at half brightness would give a mask that looks
right and is not.

Shape suffixes: H, W image sides.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slime_optimize.data.annotations.example import (
    IGNORED,
    Example,
    check_not_empty,
    index_of,
    is_background,
    is_void,
)
from slime_optimize.data.annotations.masks import load_array, open_mask
from slime_optimize.data.annotations.pictures import Picture, fitted, read_picture
from slime_optimize.errors import InputError, tell

Bits = npt.NDArray[np.bool_]
# RectLabel writes NAME_class_PART.png.
_PREFIX = re.compile(r"class[_-]", re.IGNORECASE)


def load_layers(
    image: Path, layers: Iterable[tuple[str, Path]], parts: Sequence[str], *, larger_first: bool = False
) -> Example:
    """Load an image and paint its named layers in the order of `parts`; a part may have several files.

    With `larger_first`, for parts whose order nobody has chosen, from the largest to the smallest, so that a part which
    lies on another stays visible. Void is painted last. Raises InputError, in one line.
    """
    picture = read_picture(image)
    paths: dict[int, list[Path]] = defaultdict(list)
    for name, path in layers:
        paths[index_of(name, parts, f"mask {path}")].append(path)
    order = sorted(paths)
    if larger_first:
        areas = {index: int(_together(paths[index], picture).sum()) for index in order}
        order.sort(key=lambda index: (index == IGNORED, -areas[index]))
    mask_HW = np.zeros(picture.shape, np.uint8)
    shown = [index for index in order if _paint(mask_HW, _together(paths[index], picture), index)]
    check_not_empty(mask_HW, f"masks of {image}")
    covered = sorted(set(shown) - set(np.unique(mask_HW).tolist()))
    if covered:
        names = ", ".join(repr(parts[index]) if index != IGNORED else "void" for index in covered)
        tell(f"masks of {image}: {names} cannot be seen, other parts cover all of it; name last what lies on top")
    return picture.example(image.stem, mask_HW)


def _together(paths: Sequence[Path], picture: Picture) -> Bits:
    """Return what is painted in any of the files, as it lies over the picture."""
    layers = [fitted(painted(path).astype(np.uint8), picture, f"mask {path}") for path in paths]
    return np.asarray(np.any(layers, axis=0), bool)


def _paint(mask_HW: npt.NDArray[np.uint8], where_HW: Bits, index: int) -> bool:
    mask_HW[where_HW] = index
    return bool(where_HW.any())


def painted(path: Path) -> Bits:
    """Return where a black and white PNG or .npy is painted, (H,W) bool; InputError for anything else."""
    if path.suffix.lower() == ".npy":
        array = load_array(path)
        if array.ndim != 2:
            raise InputError(f"mask {path}: is of shape {array.shape}, expected (height, width)")
        return _brighter(array, path)
    with open_mask(path) as image:
        if image.has_transparency_data:
            alpha_HW = np.array(image.convert("RGBA"))[..., 3]
            if (alpha_HW < 255).any():
                return alpha_HW >= 128
        if image.mode.startswith("I"):
            return _brighter(np.array(image), path)
        rgb_HW3 = np.array(image.convert("RGB"))
    red_HW = rgb_HW3[..., 0]
    if (rgb_HW3 == red_HW[..., None]).all():
        return _brighter(red_HW, path)
    coloured_HW = rgb_HW3.any(axis=2)
    if not (rgb_HW3[coloured_HW] == rgb_HW3[coloured_HW][0]).all():
        raise _refusal(path, "several colours")
    return np.asarray(coloured_HW)


def _brighter(values_HW: npt.NDArray[Any], path: Path) -> Bits:
    """Return which values are painted: the brighter of two, or those of at least half brightness in smoothed grey."""
    values = np.unique(values_HW)
    low, high = values[0], values[-1]
    if len(values) <= 2:
        return np.asarray(values_HW > (low if len(values) == 2 else 0))
    half = 128 if high < 256 else 32768  # 16 bits of grey
    if high < half or _has_plateau(values_HW, float(low), float(high)):
        raise _refusal(path, f"{len(values)} values from {low} to {high}")
    return np.asarray(values_HW >= half)


def _has_plateau(values_HW: npt.NDArray[Any], low: float, high: float) -> bool:
    """Return whether 3 x 3 pixels have one value, neither dark nor bright: a part of its own, no smoothed edge."""
    reach = (high - low) / 10
    middle_HW = (values_HW > low + reach) & (values_HW < high - reach)
    height, width = (max(0, side - 2) for side in values_HW.shape)
    centre = values_HW[1 : 1 + height, 1 : 1 + width]
    solid = middle_HW[1 : 1 + height, 1 : 1 + width].copy()
    for top in range(3):
        for left in range(3):
            solid &= values_HW[top : top + height, left : left + width] == centre
    return bool(solid.any())


def _refusal(path: Path, has: str) -> InputError:
    return InputError(
        f"mask {path}: its name is that of a mask for one part, but it has {has}, expected black and white; "
        "name a mask of all parts after its image, NAME_mask.png, and take previews out of the folder"
    )


def listed_name(rest: str, parts: Sequence[str]) -> str | None:
    """Return the part, or the name of the background or void, that the rest of a file's name says; None for no part.

    RectLabel's "class_" before it, upper and lower case, and "_" or "-" in place of spaces make no difference, where
    only one part can be meant.
    """
    for name in dict.fromkeys((rest, _PREFIX.sub("", rest, count=1) if _PREFIX.match(rest) else rest)):
        if name in parts or is_background(name) or is_void(name):
            return name
        alike = [part for part in parts if _alike(part) == _alike(name)]
        if len(alike) == 1:
            return alike[0]
    return None


def _alike(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def own_names(rests: Iterable[str]) -> dict[str, str]:
    """Return the part that each rest of a file's name says, where no list names the parts."""
    found = list(dict.fromkeys(rests))
    prefixed = all(_PREFIX.match(rest) for rest in found)
    return {rest: (_PREFIX.sub("", rest, count=1) if prefixed else rest).lstrip("_- ") or rest for rest in found}
