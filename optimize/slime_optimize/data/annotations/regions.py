"""Regions of an image, polygons and run lengths, and the mask that they make together.

Shape suffixes: H, W image sides.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as run_lengths

from slime_optimize.data.annotations.example import (
    IGNORED,
    Example,
    NoAreaError,
    check_not_empty,
    is_background,
    parts_from,
)
from slime_optimize.data.annotations.pictures import Picture, points
from slime_optimize.errors import InputError, tell

Json = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Region:
    """A region as compressed run lengths: as pixels, a large picture's regions would fill the memory."""

    lengths: Json
    subject: str

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(run_lengths.area(self.lengths))

    def painted(self) -> npt.NDArray[np.bool_]:
        """Return the pixels, (H,W) bool."""
        return np.asarray(run_lengths.decode(self.lengths), bool)


def example_of(layers: Iterable[tuple[int, Region]], picture: Picture, file: Path, subject: str) -> Example:
    """Return the example of an image and its regions, each with its part's index.

    They are painted from large to small, equal ones in their order, and void last, which lies on all others. Raises
    InputError where no part is left.
    """
    mask_HW = np.zeros(picture.shape, np.uint8)
    # Decoded one at a time: a large picture's regions would fill the memory.
    for index, region in sorted(layers, key=lambda layer: (layer[0] == IGNORED, -layer[1].area)):
        mask_HW[region.painted()] = index
    check_not_empty(mask_HW, subject)
    return picture.example(file.stem, mask_HW)


def drawn_parts(names: Sequence[str], drawn: Container[str | None], subject: str) -> tuple[str, ...]:
    """Return the parts in the order of `names`: those that something is drawn of, which is told where it is not all."""
    unused = [name for name in names if name not in drawn and not is_background(name)]
    if unused and len(unused) < len(names):
        tell(f"{subject}: nothing is annotated as {', '.join(map(repr, unused))}, left out of the parts")
        names = [name for name in names if name not in unused]
    return parts_from(names)


def region_of(segmentation: object, shape: tuple[int, int], subject: str) -> Region:
    """Return the region of an annotation's `segmentation`; InputError with `subject` for what cannot be one."""
    if isinstance(segmentation, list) and segmentation:
        rings = segmentation if isinstance(segmentation[0], list) else [segmentation]
        flat = [[float(number) for point in points(ring, shape, subject) for number in point] for ring in rings]
        areas = [ring for ring in flat if len(ring) >= 6]
        if not areas:
            raise NoAreaError(f"{subject}: has a polygon of fewer than 3 points; remove or redraw it")
        if len(areas) < len(flat):
            tell(f"{subject}: has a polygon of fewer than 3 points among others; left out")
        return Region(lengths=run_lengths.merge(run_lengths.frPyObjects(areas, *shape)), subject=subject)
    if isinstance(segmentation, dict):
        return Region(lengths=_compressed(segmentation, shape, subject), subject=subject)
    raise NoAreaError(
        f"{subject}: has no outline, only a box or key points, expected polygons or a mask; "
        "draw the part with the polygon or brush tool"
    )


def _compressed(segmentation: Json, shape: tuple[int, int], subject: str) -> dict[str, Any]:
    counts = segmentation["counts"]
    if list(segmentation["size"]) != list(shape):
        raise InputError(
            f"{subject}: its run lengths are for [height, width] {segmentation['size']}, expected {list(shape)} "
            "as the image; export it with the images"
        )
    if isinstance(counts, str):
        # The decoder trusts the lengths, and leaves its memory as it was where they end too early.
        if sum(_lengths(counts, subject)) != shape[0] * shape[1]:
            raise _broken(subject)
        return {"size": list(shape), "counts": counts.encode()}
    whole = all(type(number) is int and number >= 0 for number in counts)
    if not whole or sum(counts) != shape[0] * shape[1]:
        raise _broken(subject)
    made: dict[str, Any] = run_lengths.frPyObjects({"size": list(shape), "counts": counts}, *shape)
    return made


def _lengths(counts: str, subject: str) -> list[int]:
    """Return compressed run lengths as numbers.

    Each is written in digits of 5 bits, from the character "0" on; the sixth bit says that more digits follow. From the
    fourth number on, each is the signed difference to the one before the last.
    """
    lengths: list[int] = []
    value = bits = 0
    for character in counts:
        digit = ord(character) - ord("0")
        if not 0 <= digit < 64:
            raise _broken(subject)
        value |= (digit & 31) << bits
        bits += 5
        if not digit & 32:
            value -= (digit & 16) and 1 << bits
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = bits = 0
    if bits or min(lengths, default=-1) < 0:
        raise _broken(subject)
    return lengths


def _broken(subject: str) -> InputError:
    return InputError(f"{subject}: its run lengths do not fill the image; export it again")
