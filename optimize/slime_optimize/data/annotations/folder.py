"""Folders of images and masks: where the two lie, what names the parts, and reading them all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from slime_optimize.data.annotations.binary import load_layers
from slime_optimize.data.annotations.example import Annotated, check_parts
from slime_optimize.data.annotations.images import IMAGE_SUFFIXES
from slime_optimize.data.annotations.layout import MASK_SUFFIXES, Found, files, match
from slime_optimize.data.annotations.legend import Legend, find_legend
from slime_optimize.data.annotations.names import agreed, parts_from
from slime_optimize.data.annotations.pairs import load_pairs
from slime_optimize.errors import InputError, first_line

PARTS_FILE = "parts.json"
CVAT_MASKS = "SegmentationClass"
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "JPEGImages")
MASK_FOLDERS = ("masks", "mask", "labels", "label", "annotations", "segmentation", CVAT_MASKS)


def places(folder: Path) -> tuple[Path, Path] | None:
    """Where images and masks lie: in two sub-folders, side by side, or images here and masks below; else None."""
    images = _first(folder, IMAGE_FOLDERS, IMAGE_SUFFIXES)
    masks = _first(folder, MASK_FOLDERS, MASK_SUFFIXES)
    if masks is not None:
        return images or folder, masks
    if images is not None:
        return images, images
    return (folder, folder) if files(folder, IMAGE_SUFFIXES) else None


def read_folder(folder: Path, parts: Sequence[str] | None, legend: Legend | None) -> Annotated:
    """Every image with its mask; InputError in one line for what cannot be used, ImageError for broken images."""
    where = places(folder)
    if where is None:
        raise InputError(f"data {folder}: has no images, expected images/ and masks/, or both side by side")
    # CVAT writes masks for annotated frames alone, and all frames as images.
    found = match(*where, some=where[1].name == CVAT_MASKS)
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
    return _layers(found, parts, own, folder) if layered else _whole(found, parts, own, legend, folder)


def read_parts(folder: Path) -> tuple[str, ...] | None:
    """The names in the folder's parts.json, None without one."""
    path = folder / PARTS_FILE
    try:
        names = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"data {path}: cannot be read ({first_line(error)}); expected a JSON list of names") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"data {path}: expected a JSON list of part names, background first")
    return check_parts(names)


def _whole(
    found: list[Found], asked: Sequence[str] | None, own: Sequence[str] | None, legend: Legend | None, folder: Path
) -> Annotated:
    legend = legend or find_legend(folder)
    parts = agreed(asked, own, f"data {folder}") if legend is None else check_parts(asked or own or legend.parts)
    return Annotated(parts=parts, examples=load_pairs(((one.image, one.whole[0]) for one in found), parts, legend))


def _layers(found: list[Found], asked: Sequence[str] | None, own: Sequence[str] | None, folder: Path) -> Annotated:
    for one in found:
        names = [name for name, _ in one.layers]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"image {one.image}: has two masks called {twice!r}, expected one for each part")
    names = sorted({name for one in found for name, _ in one.layers})
    parts = check_parts(asked or own or parts_from(names))
    return Annotated(parts=parts, examples=tuple(load_layers(one.image, one.layers, parts) for one in found))


def _first(folder: Path, names: Sequence[str], suffixes: Sequence[str]) -> Path | None:
    """The first sub-folder of these names, in any case, that holds such files or folders of them."""
    below = {path.name.casefold(): path for path in sorted(folder.iterdir()) if path.is_dir()}
    for name in names:
        path = below.get(name.casefold())
        if path and any(files(place, suffixes) for place in (path, *(p for p in path.iterdir() if p.is_dir()))):
            return path
    return None
