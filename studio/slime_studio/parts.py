"""Parts: what each is called, the value it has in masks, and its colour."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from slime_studio.errors import StudioError

_COLOUR = re.compile(r"#[0-9a-f]{6}")
_LONGEST_NAME = 60


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part: its value in masks, its name, and its colour, "#rrggbb"; value 0 is the background."""

    value: int
    name: str
    colour: str


def check(parts: Sequence[Part]) -> None:
    """Raise StudioError for parts that cannot be learned: a name given twice or empty, more than 77, no such colour."""
    from slime_optimize.data.annotations import check_parts
    from slime_optimize.errors import InputError

    long = [part.name for part in parts if len(part.name) > _LONGEST_NAME]
    if long:
        raise StudioError(
            f"parts: a name has {len(long[0])} characters, expected {_LONGEST_NAME} at most; give a shorter one"
        )
    try:
        if len(parts) > 1:
            check_parts([part.name for part in parts])
    except InputError as error:
        raise StudioError(str(error)) from error
    wrong = [part.colour for part in parts if not _COLOUR.fullmatch(part.colour)]
    if wrong:
        raise StudioError(f"parts: got the colour {wrong[0][:20]!r}, expected one such as #4285f4")


def given_colour(place: int) -> str:
    """Return the colour that the part at this place in the list has until a person chooses another."""
    from slime_optimize.picture import palette

    return "#{:02x}{:02x}{:02x}".format(*palette(place + 1)[place])
