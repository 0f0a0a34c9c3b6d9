"""The layout that the published code reads: NAME.png beside NAME.npy, which has a part number for each pixel.

    SOURCE/[train_1|train_10|val|test/]NAME.png, NAME.npy

Shape suffixes: H, W image sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slime_image import load
from slime_optimize.data.annotations import Example, check_ids, check_parts
from slime_optimize.data.datasets.plan import Plan, Read
from slime_optimize.errors import InputError, first_line
from slime_was.options import MAX_PARTS

# What the numbers mean in the authors' published data and embeddings, in the paper's words.
PARTS: dict[str, tuple[str, ...]] = {
    "car": ("background", "body", "light", "plate", "wheel", "window"),
    "horse": ("background", "head", "neck+torso", "leg", "tail"),
    "face": ("background", "face", "eye", "mouth", "nose", "eyebrow", "ear", "neck", "cloth", "hair"),
}


def published(
    source: Path, kind: str | None = None, *, split: str | None = None, parts: Sequence[str] | None = None
) -> Plan:
    """Return the plan for every pair in `source`, or in its sub-folder `split`.

    `kind` names the parts, or `parts` does, one by one. Raises InputError, in one line, for what is not there.
    """
    names = _names(kind, parts)
    folder = source / split if split else source
    images = sorted(folder.glob("*.png")) if folder.is_dir() else []
    if not images:
        below = sorted(path.name for path in source.iterdir() if path.is_dir()) if source.is_dir() else []
        hint = f"; --split is one of {', '.join(below)}" if below else ""
        raise InputError(f"data {folder}: has no NAME.png, expected NAME.png beside NAME.npy{hint}")
    about = {"dataset": "published layout", "kind": kind, "split": split}
    return Plan(parts=names, items=tuple(partial(_read, image, names) for image in images), about=about)


def _names(kind: str | None, parts: Sequence[str] | None) -> tuple[str, ...]:
    if parts is not None:
        return check_parts(parts)
    if kind not in PARTS:
        raise InputError(f"--kind {kind}: expected one of {', '.join(PARTS)}, or --parts with the names by number")
    return PARTS[kind]


def _read(image: Path, parts: tuple[str, ...]) -> Read:
    path = image.with_suffix(".npy")
    mask_HW, image_HW3 = _mask(path), load(image)
    if mask_HW.shape != image_HW3.shape[:2]:
        raise InputError(f"mask {path}: is {mask_HW.shape}, expected {image_HW3.shape[:2]} as the image {image}")
    check_ids(mask_HW, parts, f"mask {path}")
    if not mask_HW.any():
        return Read(left_out={"without any of the parts": 1})
    return Read(examples=(Example(name=image.stem, image_HW3=image_HW3, mask_HW=mask_HW),))


def _mask(path: Path) -> npt.NDArray[np.uint8]:
    """Load part numbers of any type that holds whole numbers; the published code saves some as floats."""
    try:
        values = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError(f"mask {path}: no such file, expected one beside every image") from error
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"mask {path}: not a readable .npy array ({first_line(error)})") from error
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "buif":
        raise InputError(f"mask {path}: expected an array of numbers (height, width)")
    if not np.isin(values, np.arange(MAX_PARTS)).all():
        raise InputError(
            f"mask {path}: has values that are no part numbers, expected whole numbers of 0 to {MAX_PARTS - 1}"
        )
    return values.astype(np.uint8)
