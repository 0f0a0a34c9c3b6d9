"""Points of outlines: checked once, because rasterisers trust their numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from slime_optimize.errors import InputError

Point = tuple[float, float]


def points(values: object, shape: tuple[int, int], subject: str) -> list[Point]:
    """[[x, y], …] or [x, y, x, y, …] -> points; InputError unless finite, and on the image or not far beside it."""
    flat = values if isinstance(values, list) else None
    if flat is not None and any(isinstance(value, list) for value in flat):
        flat = [number for pair in flat for number in (pair if isinstance(pair, list) and len(pair) == 2 else [None])]
    if flat is None or len(flat) % 2 or not all(type(number) in (int, float) for number in flat):
        raise InputError(f"{subject}: its points are no pairs of numbers, expected [x, y] for each; export it again")
    found = list(zip(flat[0::2], flat[1::2], strict=True))
    _check(found, shape, subject)
    return found


def _check(found: Sequence[Point], shape: tuple[int, int], subject: str) -> None:
    height, width = shape
    for x, y in found:
        inside = math.isfinite(x) and math.isfinite(y) and -width <= x <= 2 * width and -height <= y <= 2 * height
        if not inside:
            raise InputError(
                f"{subject}: has the point ({x:g}, {y:g}), expected one on the image of {width}x{height} pixels; "
                "annotate the file that is read here"
            )
