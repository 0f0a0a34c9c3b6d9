"""What a data set is to become: part names, and for each file what reads the examples in it.

Shape suffixes: H, W image sides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slime_optimize.data.annotations import Example, check_parts
from slime_optimize.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Read:
    """The examples of one file, none to several, and how many there are not for which reason."""

    examples: tuple[Example, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`items` read one file each, when called; `about` is plain JSON: the rules they follow."""

    parts: tuple[str, ...]
    items: tuple[Callable[[], Read], ...]
    about: Mapping[str, Any]


def chosen_parts(asked: Sequence[str] | None, known: Sequence[str], subject: str) -> tuple[str, ...]:
    """The parts asked for in the order asked for, the background first; all of them without a wish."""
    if asked is None:
        return tuple(known)
    parts = check_parts(asked)
    strange = [name for name in parts if name not in known]
    if strange or parts[0] != known[0]:
        raise InputError(
            f"--parts: got {' '.join(parts)}, expected {known[0]} first and then some of the parts of {subject}: "
            f"{' '.join(known[1:])}"
        )
    return parts


def painted(
    layers: Sequence[tuple[str, npt.NDArray[np.bool_]]], parts: Sequence[str], shape: tuple[int, ...]
) -> npt.NDArray[np.uint8]:
    """Layers (part, (H,W)) laid over each other, the last on top; parts that were not chosen are background."""
    mask_HW = np.zeros(shape, np.uint8)
    for name, layer_HW in layers:
        mask_HW[layer_HW] = parts.index(name) if name in parts else 0
    return mask_HW


def found_below(source: Path, name: str, levels: int = 3) -> Path | None:
    """The folder or file of that name in `source` or up to so many levels below it; the first by name."""
    for level in range(levels + 1):
        below = sorted(source.glob("/".join(["*"] * level + [name])))
        if below:
            return below[0]
    return None


def listed(path: Path) -> list[str]:
    """The first word of each line; lines of VOC's lists that end in -1 say that the class is not there."""
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"split {path}: cannot be read as a list of names; expected a name on each line") from error
    return [words[0] for words in lines if words and words[1:2] != ["-1"]]
