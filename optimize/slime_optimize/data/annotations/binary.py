"""Several black and white masks for one image, one for each part.

A pixel counts as painted where it is opaque, in pictures with transparency; else where it is not 0, in masks of two
values; else from 128 on, so that smoothed edges and scans do no harm. Where masks overlap, the later part wins.

Shape suffixes: H, W image sides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slime_optimize.data.annotations.example import Example, check_not_empty
from slime_optimize.data.annotations.images import fitted, read_picture
from slime_optimize.data.annotations.masks import load_array, open_png
from slime_optimize.data.annotations.names import index_of
from slime_optimize.errors import InputError


def load_layers(image: Path, layers: Iterable[tuple[str, Path]], parts: Sequence[str]) -> Example:
    """Paints the named masks in the order of `parts`; of a part's several masks all count."""
    picture = read_picture(image)
    mask_HW = np.zeros(picture.shape, np.uint8)
    numbered = [(index_of(name, parts, f"mask {path}"), path) for name, path in layers]
    for index, path in sorted(numbered):
        mask_HW[fitted(painted(path).astype(np.uint8), picture, f"mask {path}") > 0] = index
    check_not_empty(mask_HW, f"masks of {image}")
    return Example(name=image.stem, image_HW3=picture.image_HW3, mask_HW=mask_HW, digest=picture.digest)


def painted(path: Path) -> npt.NDArray[np.bool_]:
    """Where a black and white PNG or .npy is painted, (H,W); InputError for anything else."""
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
