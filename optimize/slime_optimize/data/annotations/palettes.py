"""Palettes whose order is known, so that the colours of a mask say more than its indices.

Programs that make PNGs smaller, and editors, reorder palettes: the picture stays the same and the indices change. In a
palette that is known here, each colour therefore stands for the part number that it has there.

SLiMe Serve's    the colours that slime segment and the client write
PASCAL VOC's     the colours of its 256 labels, which LabelMe and many other tools use too; 255 is void
grey             part number i is (i, i, i), and 255 is void
black and white  where there are two parts

Shape suffixes: V values or colours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from slime_optimize.data.annotations.example import IGNORED
from slime_optimize.picture import palette
from slime_was.options import MAX_PARTS

Colour = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Palette:
    """A palette's name, and the part number, or IGNORED, of each colour."""

    name: str
    numbers: Mapping[Colour, int]

    def means(self, colours: Iterable[Colour], parts: int) -> bool:
        """Return whether every colour is of this palette and means void or one of that many parts, one of them > 0."""
        numbers = [self.numbers.get(colour, -1) for colour in colours]
        some = any(0 < number < parts for number in numbers)
        return some and all(0 <= number < parts or number == IGNORED for number in numbers)


def known_palette(colours: Iterable[Colour], parts: int) -> Palette | None:
    """Return the palette that all these colours are of, with numbers that fit that many parts; None for none."""
    found = list(colours)
    candidates = (*_palettes(), *((_BLACK_AND_WHITE,) if parts == 2 else ()))
    return next((each for each in candidates if each.means(found, parts)), None)


def own_palette() -> Palette:
    """Return the palette of the masks that SLiMe Serve writes."""
    return _palettes()[0]


_BLACK_AND_WHITE = Palette(name="black and white", numbers={(0, 0, 0): 0, (255, 255, 255): 1})


@cache
def _palettes() -> tuple[Palette, ...]:
    own = {colour: index for index, colour in enumerate(palette(MAX_PARTS))}
    grey = {(index, index, index): index for index in (*range(MAX_PARTS), IGNORED)}
    return (
        Palette(name="SLiMe Serve's", numbers=own),
        Palette(name="PASCAL VOC's", numbers={voc_colour(index): index for index in range(256)}),
        Palette(name="grey", numbers=grey),
    )


def voc_colour(index: int) -> Colour:
    """Return PASCAL VOC's colour of a label: bits 0, 1 and 2 of each three of the index give red, green and blue."""
    colour = [0, 0, 0]
    for place in range(3):
        for channel in range(3):
            colour[channel] |= (index >> (3 * place + channel) & 1) << (7 - place)
    return colour[0], colour[1], colour[2]
