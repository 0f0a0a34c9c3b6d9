"""Folders of images and masks: what their masks are, and what names the parts. matching.py finds which belong together.

The names of the parts are those of parts.json, Roboflow's _classes.csv, a legend, or the files of masks of one part.
Masks of numbers are numbered as the first two name them; without either, as the person asks.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from slime_optimize.data.annotations.example import (
    Annotated,
    check_parts,
    index_of,
    is_background,
    is_void,
    parts_from,
    spelled,
)
from slime_optimize.data.annotations.layers import listed_name, load_layers, own_names
from slime_optimize.data.annotations.legend import Legend, find_legend
from slime_optimize.data.annotations.masks import load_pairs
from slime_optimize.data.annotations.matching import CVAT_MASKS, Found, match, places, subsets, tell_skipped
from slime_optimize.errors import InputError, first_line, tell

PARTS_FILE = "parts.json"
CLASSES_FILE = "_classes.csv"


def read_folder(folder: Path, parts: Sequence[str] | None, legend: Legend | None) -> Annotated:
    """Load every image with its mask; InputError in one line for what cannot be used, ImageError for broken images."""
    where = places(folder)
    if where is None:
        raise InputError(f"data {folder}: has no images, expected images/ and masks/, or both side by side")
    # CVAT writes masks for annotated frames alone, and all frames as images.
    some = where[1].name == CVAT_MASKS
    pairs = subsets(*where)
    found = [one for images, masks in pairs for one in match(images, masks, some=some)]
    tell_skipped(folder, pairs, found)
    if not found:
        raise InputError(f"data {folder}: has no image with a mask, expected {where[0]}/NAME.jpg, {where[1]}/NAME.png")
    layered = [one for one in found if one.layers]
    if layered and len(layered) < len(found):
        other = next(one for one in found if one.whole)
        raise InputError(
            f"data {folder}: {layered[0].image.name} has a mask for each part, {other.image.name} one for all, "
            "expected one kind; keep the two in folders of their own"
        )
    if layered and legend is not None:
        raise InputError(f"legend {legend.source}: the masks of {folder} are one for each part; leave --legend out")
    own = read_parts(folder)
    if layered:
        return _read_layers(folder, found, parts or own, "--parts" if parts else PARTS_FILE)
    legend = legend or find_legend(folder)
    own = own or (None if legend else _classes_csv(folder))
    asked = parts or own or legend.parts if legend else own or parts
    if asked is None:
        raise InputError(
            f"data {folder}: names no parts, expected parts.json (a JSON list, background first) beside the masks; "
            "write it, or name the parts with --parts"
        )
    asked = tuple(asked) if own else check_parts(asked)
    examples = load_pairs(((one.image, one.whole[0]) for one in found), asked, legend)
    if not legend and not own:
        return Annotated(parts=asked, examples=examples, by_number=True)
    return _by_names(Annotated(parts=asked, examples=examples), parts, folder)


def dataset(folder: Path) -> tuple[tuple[str, ...], list[tuple[Path, Path]]]:
    """Return the part names and the (image, mask) files of a folder as optimize/prepare.py writes it, without loading.

    Such a folder holds images/NAME.png, masks/NAME.png and parts.json. Raises InputError where one is not there.
    """
    parts = read_parts(folder)
    if parts is None:
        raise InputError(f"data {folder}: has no {PARTS_FILE}; expected images/*.png, masks/*.png and {PARTS_FILE}")
    images = sorted((folder / "images").glob("*.png"))
    if not images:
        raise InputError(f"data {folder}: has no images/*.png; expected images/NAME.png and masks/NAME.png")
    return check_parts(parts), [(image, folder / "masks" / image.name) for image in images]


def read_parts(folder: Path) -> tuple[str, ...] | None:
    """Return the names in the folder's parts.json by number, None without one; InputError for what is no such list."""
    path = folder / PARTS_FILE
    try:
        names = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"data {path}: cannot be read ({first_line(error)}); expected a JSON list of names") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"data {path}: expected a JSON list of part names, background first")
    return tuple(map(spelled, names))


def _classes_csv(folder: Path) -> tuple[str, ...] | None:
    """Return the names in Roboflow's _classes.csv by pixel value, None without one; InputError where it has gaps."""
    path = folder / CLASSES_FILE
    if not path.is_file():
        return None
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = [[word.strip() for word in line] for line in csv.reader(file) if line]
        values = {int(value): name for value, name in lines[1:]}
    except (OSError, ValueError) as error:
        raise InputError(
            f"data {path}: cannot be read ({first_line(error)}); expected lines of a pixel value and a class"
        ) from error
    if sorted(values) != list(range(len(values))) or len(values) != len(lines) - 1:
        raise InputError(f"data {path}: its pixel values are not 0, 1, 2 and so on, each once; use --parts")
    return tuple(spelled(values[value]) for value in range(len(values)))


def _by_names(found: Annotated, parts: Sequence[str] | None, folder: Path) -> Annotated:
    """Return the examples numbered by `parts`; without them, by the source's own that are painted, which is told."""
    painted = sorted({int(value) for one in found.examples for value in np.unique(one.mask_HW)} & {*range(1, 255)})
    used = [name for value, name in enumerate(found.parts) if value in painted]
    unused = [name for name in found.parts[1:] if name not in used and not is_background(name) and not is_void(name)]
    if parts is None and unused:
        tell(f"data {folder}: nothing is painted as {', '.join(map(repr, unused))}, left out of the parts")
    names = check_parts(parts) if parts is not None else parts_from(used, found.parts[0])
    numbers = np.arange(256, dtype=np.uint8)
    for value in painted:
        numbers[value] = index_of(found.parts[value], names, f"masks of {folder}")
    return Annotated(parts=names, examples=tuple(replace(one, mask_HW=numbers[one.mask_HW]) for one in found.examples))


def _read_layers(folder: Path, found: list[Found], parts: Sequence[str] | None, listed_in: str) -> Annotated:
    """Load masks for each part, whose names must all be in the list of parts where there is one."""
    own = own_names(rest for one in found for rest, _ in one.layers)
    names = parts_from(sorted(own.values())) if parts is None else check_parts(parts)
    layers: list[list[tuple[str, Path]]] = []
    for one in found:
        named = [
            (own[rest] if parts is None else _listed(rest, path, names, listed_in), path) for rest, path in one.layers
        ]
        given = [name for name, _ in named]
        twice = next((name for name in given if given.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"image {one.image}: has two masks called {twice!r}, expected one for each part")
        layers.append(named)
    examples = tuple(
        load_layers(one.image, named, names, larger_first=parts is None)
        for one, named in zip(found, layers, strict=True)
    )
    first, count = found[0].layers[0][1].name, sum(len(one.layers) for one in found)
    order = "in the order of their names, the larger painted first" if parts is None else f"as {listed_in} names them"
    what = f"{count} black and white masks such as {first} are one for each part"
    tell(f"data {folder}: {what}, {order}: {', '.join(names[1:])}")
    return Annotated(parts=names, examples=examples)


def _listed(rest: str, path: Path, parts: Sequence[str], listed_in: str) -> str:
    name = listed_name(rest, parts)
    if name is None:
        raise InputError(
            f"mask {path}: has the name {rest!r}, expected one of the parts {', '.join(parts)}; name it in {listed_in} "
            "if it is the mask of one part, or call a mask of all parts NAME_mask.png"
        )
    return name
