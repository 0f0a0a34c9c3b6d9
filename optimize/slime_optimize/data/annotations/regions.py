"""Regions of COCO JSON, polygons and run lengths compressed or not, as pixels: pycocotools does it.

Shape suffixes: H, W image sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as run_lengths

from slime_optimize.data.annotations.geometry import points
from slime_optimize.errors import InputError

Json = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Region:
    """Compressed run lengths: a large picture's regions would fill the memory as pixels."""

    lengths: Json
    subject: str

    @property
    def area(self) -> int:
        return int(run_lengths.area(self.lengths))

    def painted(self) -> npt.NDArray[np.bool_]:
        """The pixels (H,W)."""
        return np.asarray(run_lengths.decode(self.lengths), bool)


def region_of(segmentation: object, shape: tuple[int, int], subject: str) -> Region:
    """From an annotation's `segmentation`; InputError with `subject` for what cannot be a region."""
    if isinstance(segmentation, list) and segmentation:
        rings = segmentation if isinstance(segmentation[0], list) else [segmentation]
        flat = [[float(number) for point in points(ring, shape, subject) for number in point] for ring in rings]
        if min(map(len, flat)) < 6:
            raise InputError(f"{subject}: has a polygon of fewer than 3 points; remove or redraw it")
        return Region(lengths=run_lengths.merge(run_lengths.frPyObjects(flat, *shape)), subject=subject)
    if isinstance(segmentation, dict):
        return Region(lengths=_compressed(segmentation, shape, subject), subject=subject)
    raise InputError(
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
    """Compressed run lengths as numbers: digits of 5 bits from "0" on, the sixth bit says that more follow.

    From the fourth on each is the difference to the one before last, with a sign.
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
