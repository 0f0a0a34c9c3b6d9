"""Painted colours to part indices, by a legend.

Shape suffixes: H, W image sides.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from slime_optimize.data.annotations.legend import Colour, Legend, hexadecimal
from slime_optimize.data.annotations.names import index_of
from slime_optimize.errors import InputError


def by_colour(
    rgba_HW4: npt.NDArray[np.uint8], legend: Legend, parts: Sequence[str] | None, subject: str
) -> npt.NDArray[np.uint8]:
    """The indices (H,W) of the colours' names in `parts`, or in the legend's own; InputError for other colours.

    What is fully transparent was not painted: background.
    """
    alpha_HW = rgba_HW4[..., 3]
    if not np.isin(alpha_HW, (0, 255)).all():
        raise InputError(f"{subject}: is half transparent in places, expected solid colours; paint without smoothing")
    wide_HW3 = rgba_HW4[..., :3].astype(np.uint32)
    packed_HW = (wide_HW3[..., 0] << 16) | (wide_HW3[..., 1] << 8) | wide_HW3[..., 2]
    painted = alpha_HW == 255
    found, which, counts = np.unique(packed_HW[painted], return_inverse=True, return_counts=True)
    colours = [_unpack(value) for value in found.tolist()]
    unknown = [index for index, colour in enumerate(colours) if legend.name(colour) is None]
    if unknown:
        some = ", ".join(f"{hexadecimal(colours[i])} ({counts[i]} pixels)" for i in unknown[:5])
        raise InputError(
            f"{subject}: has colours that the legend {legend.source} does not name: {some}"
            f"{', …' if len(unknown) > 5 else ''}; name them, or repaint the mask without smoothing"
        )
    ids = np.array([_index(legend, colour, parts, subject) for colour in colours], np.uint8)
    values_HW = np.zeros(alpha_HW.shape, np.uint8)
    values_HW[painted] = ids[which.reshape(-1)] if len(colours) else 0
    return values_HW


def _index(legend: Legend, colour: Colour, parts: Sequence[str] | None, subject: str) -> int:
    """The legend's background is the parts' first, whatever the two call it."""
    name, own = legend.name(colour) or "", legend.parts
    names = own if parts is None else parts
    return 0 if name == own[0] and name not in names else index_of(name, names, subject)


def _unpack(value: int) -> Colour:
    return value >> 16, value >> 8 & 255, value & 255
