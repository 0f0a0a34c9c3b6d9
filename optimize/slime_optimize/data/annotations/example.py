"""An annotated image, the names of its parts, and what must hold of both before anything is learned from them.

Shape suffixes: H, W image sides.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from unicodedata import normalize

import numpy as np
import numpy.typing as npt

from slime_optimize.errors import InputError, tell
from slime_was.options import MAX_PARTS

# The value in masks of pixels that count nowhere: in no loss, class weight or IoU. No part has so large an index.
IGNORED = 255
# In any case, and with or without underscores, spaces and the like, as LabelMe's __ignore__ and "don't care".
_BACKGROUND = ("background", "bg")
_VOID = ("void", "ignore", "ignored", "dontcare")


@dataclass(frozen=True, kw_only=True)
class Example:
    """An image (H,W,3) uint8 RGB, its mask (H,W) uint8 of part indices or IGNORED, and the sha256 of the image file.

    remarks: what was decided in reading the image, for the person.
    """

    name: str
    image_HW3: npt.NDArray[np.uint8]
    mask_HW: npt.NDArray[np.uint8]
    digest: str = ""
    remarks: tuple[str, ...] = ()

    @property
    def ignored(self) -> int:
        """Number of pixels that count nowhere."""
        return int(np.count_nonzero(self.mask_HW == IGNORED))


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """Part names by index, background first, and the examples whose masks hold these indices.

    by_number: whether nothing but the person's list says what the numbers in the masks mean.
    """

    parts: tuple[str, ...]
    examples: tuple[Example, ...]
    by_number: bool = False


class NoAreaError(InputError):
    """An annotation that covers no pixels, such as a line; its message ends with "; " and what to do."""


def tell_left_out(without: Sequence[NoAreaError], others: Sequence[object]) -> None:
    """Tell which of an image's annotations are left out as they have no area; raise the first if it has no others."""
    if without and not others:
        raise without[0]
    for error in without:
        tell(f"{str(error).rpartition('; ')[0]}; left out")


def check_parts(names: Sequence[str]) -> tuple[str, ...]:
    """Return the part names as `spelled`; InputError for too few, too many, an empty name, or one that occurs twice.

    The background, where a name says which it is, has to be the first.
    """
    parts = tuple(map(spelled, names))
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
        if index and is_background(name) and is_background(parts[0]):
            raise InputError(f"parts: {name!r} is another name of {parts[0]!r}, expected one background; leave it out")
        if index and is_background(name):
            raise InputError(f"parts: {name!r} is number {index}, expected the background first; put it first")
    return parts


def check_ids(mask_HW: npt.NDArray[np.uint8], parts: Sequence[str], subject: str) -> None:
    """Raise InputError where the mask has an id that no part has, but for IGNORED."""
    beyond = sorted(set(np.unique(mask_HW).tolist()) - {*range(len(parts)), IGNORED})
    if beyond:
        some = ", ".join(map(str, beyond[:5])) + (", …" if len(beyond) > 5 else "")
        first = "" if is_background(parts[0]) else f", of which the first, {parts[0]!r}, is the background"
        step = "repaint the mask without smoothing" if len(beyond) > 5 else f"paint what counts nowhere as {IGNORED}"
        raise InputError(
            f"{subject}: has the part ids {some}, expected 0 to {len(parts) - 1} for {len(parts)} parts{first}; "
            f"learn with a name for every part, or {step}"
        )


def check_not_empty(mask_HW: npt.NDArray[np.uint8], subject: str) -> None:
    """Raise InputError where no part but the background has a pixel."""
    if np.isin(mask_HW, (0, IGNORED)).all():
        void = np.count_nonzero(mask_HW == IGNORED)
        told = f"background, but for {void} of the value {IGNORED}, which is void" if void else "background"
        raise InputError(
            f"{subject}: is empty, all of its {mask_HW.shape[1]}x{mask_HW.shape[0]} pixels are {told}; "
            "expected at least one part, paint it or leave the image out"
        )


def check_painted(found: Annotated, subject: str) -> None:
    """Raise InputError where a part other than the background is in no mask: it could not be learned."""
    painted: set[int] = set().union(*(np.unique(example.mask_HW).tolist() for example in found.examples))
    missing = [f"{name!r} (id {index})" for index, name in enumerate(found.parts) if index and index not in painted]
    if missing:
        others = " ".join(shlex.quote(name) for index, name in enumerate(found.parts) if index in {0, *painted})
        advice = (
            "write the names by number into parts.json beside the masks, and give --data without --parts"
            if found.by_number
            else f"give --parts {others}"
        )
        raise InputError(
            f"{subject}: has no pixel of {', '.join(missing)}; paint what is missing, or to learn without it {advice}"
        )


def tell_remarks(examples: Sequence[Example], subject: str) -> None:
    """Tell what was decided in reading the images, and how many pixels count nowhere, where there are any."""
    for remark, images in Counter(remark for example in examples for remark in example.remarks).items():
        tell(f"{subject}: {images} of {len(examples)} images have {remark}")
    counts = [example.ignored for example in examples if example.ignored]
    if counts:
        tell(ignored_line(sum(counts), len(counts), subject))


def ignored_line(pixels: int, images: int, subject: str) -> str:
    """Return the words on void pixels."""
    masks = "1 mask" if images == 1 else f"{images} masks"
    return f"{subject}: {pixels} pixels in {masks} are void, they count in no loss and no IoU"


def is_background(name: str) -> bool:
    """Return whether annotation tools use `name` for the background."""
    return _plain(name) in _BACKGROUND


def is_void(name: str) -> bool:
    """Return whether annotation tools use `name` for pixels that are to count nowhere."""
    return _plain(name) in _VOID


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()


def spelled(name: str) -> str:
    """Return a name without spaces around it, in the one of Unicode's forms that names are compared in."""
    return normalize("NFC", name).strip()


def parts_from(names: Iterable[str], background: str = "background") -> tuple[str, ...]:
    """Return a source's own part names in their order, each once, after the background; void is no part."""
    others = dict.fromkeys(spelled(name) for name in names if not is_background(name) and not is_void(name))
    return check_parts((background, *(name for name in others if name != background)))


def index_of(name: str, parts: Sequence[str], subject: str) -> int:
    """Return the part's index, 0 for every common name of the background, IGNORED for those of void.

    A name among `parts` is a part whatever it is. Raises InputError for a name that is no part, and for one that would
    be the background because a list without a background begins with it.
    """
    stripped = spelled(name)
    if stripped == parts[0] and not is_background(stripped):
        raise InputError(
            f"{subject}: is painted as {stripped!r}, which the list of parts begins with, where the background is "
            f"expected; give --parts background {' '.join(map(shlex.quote, parts))}"
        )
    if stripped in parts:
        return parts.index(stripped)
    if is_background(stripped):
        return 0
    if is_void(stripped):
        return IGNORED
    raise InputError(
        f"{subject}: has the name {stripped!r}, expected one of the parts {', '.join(parts)}; "
        "rename it in the annotations, to void where it is to count nowhere, or learn with it among the parts"
    )
