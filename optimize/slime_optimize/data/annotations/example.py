"""An annotated image, the names of its parts, and what must hold of both before anything is learned from them.

Shape suffixes: H, W image sides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slime_optimize.errors import InputError, note
from slime_was.options import MAX_PARTS

# LabelMe writes the second, some COCO sets the third.
_BACKGROUND = ("background", "_background_", "__background__")


@dataclass(frozen=True, kw_only=True)
class Example:
    """An image (H,W,3) uint8 RGB, its mask (H,W) uint8 of part indices, and the sha256 of the image file."""

    name: str
    image_HW3: npt.NDArray[np.uint8]
    mask_HW: npt.NDArray[np.uint8]
    digest: str = ""


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """Part names by index, background first, and the examples whose masks hold these indices."""

    parts: tuple[str, ...]
    examples: tuple[Example, ...]


class NoAreaError(InputError):
    """An annotation that covers no pixels, such as a line; its message ends with "; " and what to do."""


def tell_left_out(without: Sequence[NoAreaError], others: Sequence[object]) -> None:
    """Tell which of an image's annotations are left out as they have no area; raise the first if it has no others."""
    if without and not others:
        raise without[0]
    for error in without:
        note(f"{str(error).rpartition('; ')[0]}; left out")


def check_parts(names: Sequence[str]) -> tuple[str, ...]:
    """Return the part names, stripped; InputError for too few, too many, an empty name, or one that occurs twice."""
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
    """Raise InputError where the mask has an id that no part has."""
    beyond = sorted(set(np.unique(mask_HW).tolist()) - set(range(len(parts))))
    if beyond:
        some = ", ".join(map(str, beyond[:5])) + (", …" if len(beyond) > 5 else "")
        raise InputError(
            f"{subject}: has the part ids {some}, expected 0 to {len(parts) - 1} for {len(parts)} parts; "
            "name every part, or repaint the mask without smoothing"
        )


def check_not_empty(mask_HW: npt.NDArray[np.uint8], subject: str) -> None:
    """Raise InputError where no part but the background has a pixel."""
    if not mask_HW.any():
        raise InputError(
            f"{subject}: is empty, all of its {mask_HW.shape[1]}x{mask_HW.shape[0]} pixels are background; "
            "expected at least one part, paint it or leave the image out"
        )


def check_painted(examples: Sequence[Example], parts: Sequence[str], subject: str) -> None:
    """Raise InputError where a part other than the background is in no mask: it could not be learned."""
    painted: set[int] = set().union(*(np.unique(example.mask_HW).tolist() for example in examples))
    missing = [f"{name!r} (id {index})" for index, name in enumerate(parts) if index and index not in painted]
    if missing:
        raise InputError(
            f"{subject}: has no pixel of {', '.join(missing)}; paint the part, or take its name out of the list of "
            "parts (in masks of numbers, the numbers after it then fall by one)"
        )


def is_background(name: str) -> bool:
    """Return whether annotation tools use `name` for the background."""
    return name.strip().casefold() in _BACKGROUND


def parts_from(names: Iterable[str]) -> tuple[str, ...]:
    """Return a source's own part names in their order, each once, after "background"."""
    return check_parts(("background", *dict.fromkeys(name.strip() for name in names if not is_background(name))))


def index_of(name: str, parts: Sequence[str], subject: str) -> int:
    """Return the part's index, 0 for every common name of the background; InputError for a name that is no part."""
    stripped = name.strip()
    if stripped in parts:
        return parts.index(stripped)
    if is_background(stripped):
        return 0
    raise InputError(
        f"{subject}: has the name {stripped!r}, expected one of the parts {', '.join(parts)}; "
        "rename it in the annotations, or learn with it among the parts"
    )


def agreed_parts(asked: Sequence[str] | None, own: Sequence[str] | None, subject: str) -> tuple[str, ...]:
    """Return the part names for masks of part numbers: those asked for, or the source's own.

    Raises InputError where there are neither, or both and they differ.
    """
    if asked is None and own is None:
        raise InputError(
            f"{subject}: names no parts, expected parts.json (a JSON list, background first) beside the masks; "
            "write it, or name the parts with --parts"
        )
    if asked is not None and own is not None and tuple(asked) != tuple(own):
        raise InputError(
            f"{subject}: its parts are {', '.join(own)}, those asked for are {', '.join(asked)}; "
            "expected the same, in the same order"
        )
    return check_parts(asked if asked is not None else own or ())
