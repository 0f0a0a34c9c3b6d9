"""Names that annotation tools give to parts, and the indices they stand for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from slime_optimize.data.annotations.example import check_parts
from slime_optimize.errors import InputError

# LabelMe writes the second, some COCO sets the third.
_BACKGROUND = ("background", "_background_", "__background__")


def is_background(name: str) -> bool:
    return name.strip().casefold() in _BACKGROUND


def parts_from(names: Iterable[str]) -> tuple[str, ...]:
    """A source's own names in their order, each once, after "background"."""
    return check_parts(("background", *dict.fromkeys(name.strip() for name in names if not is_background(name))))


def index_of(name: str, parts: Sequence[str], subject: str) -> int:
    """The part's index, 0 for every usual name of the background; InputError for a name that is no part."""
    stripped = name.strip()
    if stripped in parts:
        return parts.index(stripped)
    if is_background(stripped):
        return 0
    raise InputError(
        f"{subject}: has the name {stripped!r}, expected one of the parts {', '.join(parts)}; "
        "name it in --parts, or rename it"
    )


def agreed(asked: Sequence[str] | None, own: Sequence[str] | None, subject: str) -> tuple[str, ...]:
    """Names for a source of bare part numbers: its own, or those asked for, and the same where there are both."""
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
