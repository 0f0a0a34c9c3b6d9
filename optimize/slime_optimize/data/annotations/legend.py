"""Colour legends: which colour stands for which part. Read from JSON, or from CVAT's labelmap.txt.

JSON:          {"#000000": "background", "#ff0000": "body"}     or the other way round: {"body": [255, 0, 0]}
labelmap.txt:  one line for each label, NAME:R,G,B:: (what follows the colour is not used); # begins a comment. Where no
               label has a colour, as Datumaro writes it, they have PASCAL VOC's in the order of the lines

Several colours may have one name: they are the same part. Colours called void or ignore count nowhere, unless they are
the black of a legend without a background.

Shape suffixes: H, W image sides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slime_optimize.data.annotations.example import index_of, is_background, parts_from, spelled
from slime_optimize.data.annotations.palettes import voc_colour
from slime_optimize.errors import InputError, first_line

Colour = tuple[int, int, int]
LEGEND_FILES = ("labelmap.txt", "legend.json")
_BLACK = (0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class Legend:
    """Part names by RGB colour. `source` is the file, for messages."""

    source: str
    names: Mapping[Colour, str]

    @property
    def parts(self) -> tuple[str, ...]:
        """Part names in the file's order, the background first: what is called so, else what is black, else added.

        Further names of the background are no part of their own, and void is none.
        """
        names = self.names.values()
        first = next((name for name in names if is_background(name)), None) or self.names.get(_BLACK, "background")
        return parts_from(names, first)

    def name(self, colour: Colour) -> str | None:
        """Return the colour's name; black is the background also where the legend leaves both out."""
        if colour == _BLACK and not any(is_background(name) for name in self.names.values()):
            return self.names.get(colour, "background")
        return self.names.get(colour)


def load_legend(path: Path) -> Legend:
    """Load JSON or a labelmap; InputError with the line or entry that cannot be used."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"legend {path}: cannot be read ({first_line(error)}); check the path") from error
    entries = _labelmap(path, text) if path.suffix.lower() == ".txt" else _json(path, text)
    names: dict[Colour, str] = {}
    for colour, name in entries:
        if names.setdefault(colour, name) != name:
            raise InputError(
                f"legend {path}: {hexadecimal(colour)} is both {names[colour]!r} and {name!r}, "
                "expected one name for a colour"
            )
    if not names:
        raise InputError(f'legend {path}: is empty, expected {{"#rrggbb": "name"}} or lines of name:r,g,b::')
    return Legend(source=str(path), names=names)


def find_legend(folder: Path) -> Legend | None:
    """Load the legend that lies in the folder, None without one; InputError for two that differ."""
    found = [load_legend(folder / name) for name in LEGEND_FILES if (folder / name).is_file()]
    if len(found) == 2 and found[0].names != found[1].names:
        raise InputError(
            f"data {folder}: has two legends that differ, {' and '.join(LEGEND_FILES)}; "
            "remove one, or choose with --legend"
        )
    return found[0] if found else None


def hexadecimal(colour: Colour) -> str:
    """Return #rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _labelmap(path: Path, text: str) -> Iterator[tuple[Colour, str]]:
    lines = [(n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip() and line.lstrip()[0] != "#"]
    bare = all(re.fullmatch(r"[^:]+:::?\s*", line) for _, line in lines)
    for index, (number, line) in enumerate(lines):
        name, _, rest = line.partition(":")
        colour = voc_colour(index) if bare else _colour(rest.partition(":")[0])
        if colour is None or not name.strip():
            raise InputError(f"legend {path}: line {number} is {line.strip()[:80]!r}, expected name:r,g,b::")
        yield colour, spelled(name)


def _json(path: Path, text: str) -> Iterator[tuple[Colour, str]]:
    try:
        # Pairs instead of a dict, in which of two equal keys the first would vanish unseen.
        pairs = json.loads(text, object_pairs_hook=list)
    except ValueError as error:
        raise InputError(f"legend {path}: is no JSON ({first_line(error)})") from error
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
        raise InputError(f'legend {path}: expected a JSON object, {{"#rrggbb": "name"}}')
    for key, value in pairs:
        colour, name = (_colour(key), value) if _colour(key) else (_colour(value), key)
        if colour is None or not isinstance(name, str) or not name.strip():
            entry = f"{json.dumps(key)}: {json.dumps(value)}"[:80]
            raise InputError(f'legend {path}: has {entry}, expected "#rrggbb": "name" or "name": [r, g, b]')
        yield colour, spelled(name)


def _colour(value: object) -> Colour | None:
    if isinstance(value, str) and re.fullmatch(r"\s*#[0-9a-fA-F]{6}\s*", value):
        red, green, blue = bytes.fromhex(value.strip()[1:])
        return red, green, blue
    numbers = value
    if isinstance(value, str):
        numbers = [int(word) for word in re.findall(r"\d+", value)] if re.fullmatch(r"[\s\d,]+", value) else None
    if not isinstance(numbers, list) or len(numbers) != 3:
        return None
    if not all(type(number) is int and 0 <= number <= 255 for number in numbers):
        return None
    return numbers[0], numbers[1], numbers[2]


def by_colour(
    rgba_HW4: npt.NDArray[np.uint8], legend: Legend, parts: Sequence[str] | None, subject: str
) -> npt.NDArray[np.uint8]:
    """Return part indices (H,W) uint8 of an RGBA mask (H,W,4): those of `parts`, or of the legend's own names.

    Fully transparent pixels are background. Raises InputError for colours that the legend does not name.
    """
    alpha_HW = rgba_HW4[..., 3]
    if not np.isin(alpha_HW, (0, 255)).all():
        raise InputError(f"{subject}: is half transparent in places, expected solid colours; paint without smoothing")
    wide_HW3 = rgba_HW4[..., :3].astype(np.uint32)
    packed_HW = (wide_HW3[..., 0] << 16) | (wide_HW3[..., 1] << 8) | wide_HW3[..., 2]
    painted = alpha_HW == 255
    found, which, counts = np.unique(packed_HW[painted], return_inverse=True, return_counts=True)
    colours = [(value >> 16, value >> 8 & 255, value & 255) for value in found.tolist()]
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
    """Return the colour's part index; the legend's background is part 0, whatever the two call it."""
    name, own = legend.name(colour) or "", legend.parts
    names = own if parts is None else parts
    return 0 if name == own[0] and name not in names[1:] else index_of(name, names, subject)
