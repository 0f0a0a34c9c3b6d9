"""Annotated images from files named one by one, and from the project's own folder layout.

Everything a user can get wrong about them is found here, before a backbone is loaded. `slime_optimize.data.annotations`
holds the forms of masks, and reads whole folders and the exports of annotation tools.

Shape suffixes: H, W image sides.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slime_optimize.data.annotations import masks
from slime_optimize.data.annotations.example import Example, check_parts
from slime_optimize.data.annotations.legend import Legend
from slime_optimize.data.annotations.pairs import load_example, load_training
from slime_optimize.errors import InputError, first_line

__all__ = ["Example", "check_parts", "dataset", "load_example", "load_mask", "load_training"]


def load_mask(path: Path, legend: Legend | None = None, parts: Sequence[str] | None = None) -> npt.NDArray[np.uint8]:
    """A PNG of indices, palette or (with a legend) colours, or a .npy -> part indices, uint8 (H,W)."""
    return masks.load(path, legend, parts).values_HW


def dataset(folder: Path) -> tuple[tuple[str, ...], list[tuple[Path, Path]]]:
    """A folder of images/NAME.png, masks/NAME.png and parts.json -> part names, pairs of paths by name."""
    try:
        names = json.loads((folder / "parts.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"data {folder}: its parts.json cannot be read ({first_line(error)}); "
            "expected images/*.png, masks/*.png and parts.json, a list of part names"
        ) from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"data {folder / 'parts.json'}: expected a JSON list of part names, background first")
    images = sorted((folder / "images").glob("*.png"))
    if not images:
        raise InputError(f"data {folder}: has no images/*.png; expected images/NAME.png and masks/NAME.png")
    return check_parts(names), [(image, folder / "masks" / image.name) for image in images]
