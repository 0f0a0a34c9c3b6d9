"""Folders of images and masks: where they lie, which masks belong to which image, and what names the parts.

Names alone decide which mask belongs to which image:

NAME.png, NAME.npy               one mask of all parts; in a folder with the images, beside NAME.jpg or NAME.webp
NAME_mask.png, NAME-parts.png …  the same, named after what it is (WHOLE)
NAME_PART.png, NAME-PART.png     black and white, one for each part
NAME/PART.png                    the same in a folder for each image
NAME-overlay.jpg                 no image and no mask, but a picture of both, as slime segment writes it
"""

from __future__ import annotations

import csv
import glob
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from slime_optimize.data.annotations.example import Annotated, agreed_parts, check_parts, index_of, parts_from, tell
from slime_optimize.data.annotations.layers import listed_name, load_layers, own_names
from slime_optimize.data.annotations.legend import Legend, find_legend
from slime_optimize.data.annotations.masks import load_pairs
from slime_optimize.data.annotations.pictures import IMAGE_SUFFIXES
from slime_optimize.errors import InputError, first_line, note

MASK_SUFFIXES = (".png", ".npy")
WHOLE = (
    *("mask", "masks", "label", "labels", "labelids", "parts", "seg", "segmentation", "gt", "ground_truth"),
    *("groundtruth", "annotation", "annotations", "index", "indices"),
)
_OVERLAYS = ("-overlay", "_overlay")
PARTS_FILE = "parts.json"
CLASSES_FILE = "_classes.csv"
CVAT_MASKS = "SegmentationClass"
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "img_dir", "JPEGImages")
MASK_FOLDERS = ("masks", "mask", "labels", "label", "annotations", "segmentation", "ann_dir", CVAT_MASKS)
_LOSSY = (".jpg", ".jpeg", ".webp")


@dataclass(frozen=True, kw_only=True)
class Found:
    """An image, and the files of its masks: `whole` masks of all parts, or `layers` (part name, file)."""

    image: Path
    whole: list[Path] = field(default_factory=list)
    layers: list[tuple[str, Path]] = field(default_factory=list)


def read_folder(folder: Path, parts: Sequence[str] | None, legend: Legend | None) -> Annotated:
    """Load every image with its mask; InputError in one line for what cannot be used, ImageError for broken images."""
    where = places(folder)
    if where is None:
        raise InputError(f"data {folder}: has no images, expected images/ and masks/, or both side by side")
    # CVAT writes masks for annotated frames alone, and all frames as images.
    some = where[1].name == CVAT_MASKS
    found = [one for images, masks in _subsets(*where) for one in match(images, masks, some=some)]
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
    classes = None if own or layered or legend else _classes_csv(folder)
    if classes:
        pairs = load_pairs(((one.image, one.whole[0]) for one in found), classes)
        return _by_names(Annotated(parts=classes, examples=pairs), parts, folder)
    if layered:
        return _read_layers(folder, found, parts or own, "--parts" if parts else PARTS_FILE)
    legend = legend or find_legend(folder)
    asked = check_parts(parts or own or legend.parts) if legend else agreed_parts(parts, own, f"data {folder}")
    pairs = load_pairs(((one.image, one.whole[0]) for one in found), asked, legend)
    read_all = Annotated(parts=asked, examples=pairs)
    return _by_names(read_all, None, folder) if legend and not parts and not own else read_all


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
    return parts, [(image, folder / "masks" / image.name) for image in images]


def read_parts(folder: Path) -> tuple[str, ...] | None:
    """Return the names in the folder's parts.json, None without one; InputError for one that cannot be used."""
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
    return check_parts([values[value] for value in range(len(values))])


def _by_names(found: Annotated, parts: Sequence[str] | None, folder: Path) -> Annotated:
    """Return the examples numbered by `parts`; without them, by the source's own that are painted, which is told."""
    painted = sorted({int(value) for one in found.examples for value in np.unique(one.mask_HW)} & {*range(1, 255)})
    unused = [name for value, name in enumerate(found.parts) if value and value not in painted]
    if parts is None and unused:
        note(f"data {folder}: nothing is painted as {', '.join(map(repr, unused))}, left out of the parts")
    names = check_parts(parts or [name for name in found.parts if name not in unused])
    numbers = np.arange(256, dtype=np.uint8)
    for value in painted:
        numbers[value] = index_of(found.parts[value], names, f"masks of {folder}")
    return Annotated(parts=names, examples=tuple(replace(one, mask_HW=numbers[one.mask_HW]) for one in found.examples))


def places(folder: Path) -> tuple[Path, Path] | None:
    """Return the folders of the images and of the masks, or None where there are no images.

    They are two sub-folders, one folder with both, or the images' folder and one below it for the masks.
    """
    images = _first(folder, IMAGE_FOLDERS, IMAGE_SUFFIXES)
    masks = _first(folder, MASK_FOLDERS, MASK_SUFFIXES)
    if masks is not None:
        return images or folder, masks
    if images is not None:
        return images, images
    return (folder, folder) if files(folder, IMAGE_SUFFIXES) else None


def files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """Return the visible files with one of the suffixes, in any case, sorted."""
    found = (path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.is_file())
    return sorted(path for path in found if not path.name.startswith("."))


def _subsets(images: Path, masks: Path) -> list[tuple[Path, Path]]:
    """Return the folders themselves and every pair of folders of one path below them, such as train/ and val/."""
    pairs = [(images, masks)]
    if images in (masks, masks.parent):
        return pairs
    for folder in sorted(path for path in images.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if (masks / folder.name).is_dir():
            pairs += _subsets(folder, masks / folder.name)
        elif any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.rglob("*")):
            note(f"images {folder}: there is no folder {masks / folder.name} with their masks; left out")
    return pairs


def match(images: Path, masks: Path, *, some: bool = False) -> list[Found]:
    """Return the images with their masks, matched by name.

    Images without a mask are left out if `some`, else refused. Raises InputError, in one line.
    """
    shared = images == masks
    found = _images(images, shared)
    candidates = _without_overlays(masks, MASK_SUFFIXES, found)
    owned = {path for path in candidates if _place(path, found, shared)}
    taken = owned | {one.image for one in found.values()}
    stray = [path for path in candidates if path not in taken]
    if stray:
        raise InputError(
            f"mask {stray[0]}: there is no image for it in {images}, expected a JPEG, PNG or WebP of its name"
        )
    for folder in sorted(path for path in masks.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))):
        layers = files(folder, MASK_SUFFIXES)
        if not shared and images != masks.parent and (images / folder.name).is_dir():
            continue  # a subset such as train/, which is matched by itself
        if folder.name in found:
            found[folder.name].layers.extend((path.stem, path) for path in layers)
        elif layers and not shared:
            raise InputError(f"masks {folder}: there is no image called {folder.name}, expected one of that name")
    return _checked(found, masks, some)


def _without_overlays(folder: Path, suffixes: Sequence[str], images: Iterable[str] = ()) -> list[Path]:
    """Return the files with one of the suffixes, but for overlays of others, or of images of these names."""
    stems = {path.stem for path in files(folder, (*IMAGE_SUFFIXES, *MASK_SUFFIXES))} | set(images)
    overlays = {stem + ending for stem in stems for ending in _OVERLAYS}
    return [path for path in files(folder, suffixes) if path.stem not in overlays]


def _images(folder: Path, shared: bool) -> dict[str, Found]:
    """Return the images by stem. In a shared folder, a PNG is an image unless its name makes it another's mask."""
    found: dict[str, Found] = {}
    for path in _without_overlays(folder, _LOSSY if shared else IMAGE_SUFFIXES):
        if path.stem in found:
            raise InputError(f"image {path}: there is {found[path.stem].image.name} too, expected one image of a name")
        found[path.stem] = Found(image=path)
    if shared:
        # Shorter names first: the name of a mask's image is always shorter than the mask's.
        for path in sorted(_without_overlays(folder, (".png",)), key=lambda path: (len(path.stem), path.name)):
            if _owner(path.stem, found) is None:
                found[path.stem] = Found(image=path)
    return found


def _owner(stem: str, found: dict[str, Found]) -> tuple[Found, str] | None:
    """Return the image of that name, or of the longest name that it begins with, and the rest of the name."""
    if stem in found:
        return found[stem], ""
    heads = [head for head in found if stem.startswith((f"{head}_", f"{head}-")) and len(stem) > len(head) + 1]
    head = max(heads, key=len, default=None)
    return None if head is None else (found[head], stem[len(head) + 1 :])


def _place(path: Path, found: dict[str, Found], shared: bool) -> bool:
    """Add a mask to its image; return whether it has one."""
    owner = _owner(path.stem, found)
    if owner is None or (shared and owner[0].image == path):
        return False
    one, rest = owner
    if not rest or rest.casefold() in WHOLE:
        one.whole.append(path)
    else:
        one.layers.append((rest, path))
    return True


def _checked(found: dict[str, Found], masks: Path, some: bool) -> list[Found]:
    kept: list[Found] = []
    for stem, one in sorted(found.items()):
        if one.whole and one.layers:
            raise InputError(
                f"image {one.image}: has a mask for all parts, {one.whole[0].name}, and for one, "
                f"{one.layers[0][1].name}, expected one kind; remove the other"
            )
        if len(one.whole) > 1:
            names = " and ".join(path.name for path in one.whole)
            raise InputError(f"image {one.image}: has {len(one.whole)} masks, {names}, expected one; remove the other")
        if one.whole or one.layers:
            kept.append(one)
        elif not some:
            other = next((path for path in sorted(masks.glob(f"{glob.escape(stem)}.*")) if path != one.image), None)
            if one.image.parent == masks and one.image.suffix.lower() == ".png" and other is not None:
                raise InputError(
                    f"image {one.image}: has no mask; if it is the mask of {other.name}, which is not read, "
                    "save that one as JPEG, or as PNG in images/ with the masks in masks/"
                )
            raise InputError(
                f"mask {masks / stem}.png: no such file, expected a mask for the image {one.image}; "
                "paint one, or take the image out"
            )
    return kept


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
    tell(f"data {folder}: {count} black and white masks such as {first} are one for each part, {order}")
    return Annotated(parts=names, examples=examples)


def _listed(rest: str, path: Path, parts: Sequence[str], listed_in: str) -> str:
    name = listed_name(rest, parts)
    if name is None:
        raise InputError(
            f"mask {path}: has the name {rest!r}, expected one of the parts {', '.join(parts)}; name it in {listed_in} "
            "if it is the mask of one part, or call a mask of all parts NAME_mask.png"
        )
    return name


def _first(folder: Path, names: Sequence[str], suffixes: Sequence[str]) -> Path | None:
    """Return the first sub-folder of these names, in any case, that holds such files or folders of them."""
    below = {path.name.casefold(): path for path in sorted(folder.iterdir()) if path.is_dir()}
    for name in names:
        path = below.get(name.casefold())
        if path and any(files(place, suffixes) for place in (path, *(p for p in path.rglob("*") if p.is_dir()))):
            return path
    return None
