"""An annotated image, and what must hold of it before anything is learned from it.

Shape suffixes: H, W image sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slime_optimize.errors import InputError
from slime_was.options import MAX_PARTS


@dataclass(frozen=True, kw_only=True)
class Example:
    """image (H,W,3) uint8 RGB; mask (H,W) uint8 of part indices; sha256 of the image file."""

    name: str
    image_HW3: npt.NDArray[np.uint8]
    mask_HW: npt.NDArray[np.uint8]
    digest: str = ""


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """Part names by index, background first, and the examples whose masks hold these indices."""

    parts: tuple[str, ...]
    examples: tuple[Example, ...]


def check_parts(names: Sequence[str]) -> tuple[str, ...]:
    """The part names, background first, stripped; InputError for too few, too many, empty, or twice the same."""
    parts = tuple(name.strip() for name in names)
    if not 2 <= len(parts) <= MAX_PARTS:
        raise InputError(
            f"parts: got {len(parts)} names, expected 2 to {MAX_PARTS}, background first "
            "(the text encoder holds 77 tokens)"
        )
    for index, name in enumerate(parts):
        if not name:
            raise InputError(f"parts: name {index} is empty, expected a word for each part")
        if name in parts[:index]:
            raise InputError(f"parts: {name!r} is named twice, expected each part once")
    return parts


def check_ids(mask_HW: npt.NDArray[np.uint8], parts: Sequence[str], subject: str) -> None:
    """InputError where the mask has an id that no part's name stands for."""
    beyond = sorted(set(np.unique(mask_HW).tolist()) - set(range(len(parts))))
    if beyond:
        some = ", ".join(map(str, beyond[:5])) + (", …" if len(beyond) > 5 else "")
        raise InputError(
            f"{subject}: has the part ids {some}, expected 0 to {len(parts) - 1} for {len(parts)} parts; "
            "name every part, or repaint the mask without smoothing"
        )


def check_not_empty(mask_HW: npt.NDArray[np.uint8], subject: str) -> None:
    """InputError where no part but the background has a pixel."""
    if not mask_HW.any():
        raise InputError(
            f"{subject}: is empty, all of its {mask_HW.shape[1]}x{mask_HW.shape[0]} pixels are background; "
            "expected at least one part, paint it or leave the image out"
        )


def check_painted(examples: Sequence[Example], parts: Sequence[str], subject: str) -> None:
    """InputError where a part other than the background is in no mask: it could not be learned."""
    painted: set[int] = set().union(*(np.unique(example.mask_HW).tolist() for example in examples))
    missing = [f"{name!r} (id {index})" for index, name in enumerate(parts) if index and index not in painted]
    if missing:
        raise InputError(f"{subject}: has no pixel of {', '.join(missing)}; paint the part, or leave it out of --parts")
