"""Which files of a folder are images, which are masks, and which masks belong to which image. Names alone decide.

NAME.png, NAME.npy               one mask of all parts; in a folder with the images, beside NAME.jpg or NAME.webp
NAME_mask.png, NAME-parts.png …  the same, named after what it is (WHOLE)
NAME_PART.png, NAME-PART.png     black and white, one for each part
NAME/PART.png                    the same in a folder for each image
NAME-overlay.jpg                 no image and no mask, but a picture of both, as slime segment writes it

Masks may be TIFF, BMP and GIF too, but where one has exactly its image's name in a folder with the images.
"""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from slime_optimize.data.annotations.example import spelled
from slime_optimize.data.annotations.pictures import ALWAYS_IMAGES, IMAGE_SUFFIXES
from slime_optimize.errors import InputError, tell

_EXACT = (".png", ".npy")
MASK_SUFFIXES = (*_EXACT, ".tif", ".tiff", ".bmp", ".gif")
WHOLE = (
    *("mask", "masks", "label", "labels", "labelids", "parts", "seg", "segmentation", "gt", "ground_truth"),
    *("groundtruth", "annotation", "annotations", "index", "indices"),
)
_OVERLAYS = ("-overlay", "_overlay")
_TEXTS = (".json", ".txt", ".csv", ".md", ".yaml", ".yml")  # lists of names, legends and what else says of the data
CVAT_MASKS = "SegmentationClass"
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "img_dir", "JPEGImages", "data")
MASK_FOLDERS = ("masks", "mask", "labels", "label", "annotations", "segmentation", "ann_dir", CVAT_MASKS)


@dataclass(frozen=True, kw_only=True)
class Found:
    """An image, and the files of its masks: `whole` masks of all parts, or `layers` (part name, file)."""

    image: Path
    whole: list[Path] = field(default_factory=list)
    layers: list[tuple[str, Path]] = field(default_factory=list)


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


def _stem(path: Path) -> str:
    """Return a file's name without its suffix, in one of Unicode's forms."""
    return spelled(path.stem)


def files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """Return the visible files with one of the suffixes, in any case, sorted."""
    found = (path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.is_file())
    return sorted(path for path in found if not path.name.startswith("."))


def subsets(images: Path, masks: Path) -> list[tuple[Path, Path]]:
    """Return the folders themselves and every pair of folders of one path below them, such as train/ and val/."""
    pairs = [(images, masks)]
    if images in (masks, masks.parent):
        return pairs
    for folder in sorted(path for path in images.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if (masks / folder.name).is_dir():
            pairs += subsets(folder, masks / folder.name)
        elif any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.rglob("*")):
            tell(f"images {folder}: there is no folder {masks / folder.name} with their masks; left out")
    return pairs


def tell_skipped(folder: Path, pairs: Iterable[tuple[Path, Path]], found: Iterable[Found]) -> None:
    """Tell in one line which kinds of files in the folders are no image, no mask and no list of names."""
    used = {path for one in found for path in (one.image, *one.whole, *(layer for _, layer in one.layers))}
    kinds: Counter[str] = Counter()
    for path in sorted({path for place in dict.fromkeys(chain(*pairs)) for path in place.iterdir()} - used):
        suffix = path.suffix.lower()
        if path.is_file() and not path.name.startswith(".") and suffix not in _TEXTS:
            overlay = _stem(path).endswith(_OVERLAYS) and suffix in IMAGE_SUFFIXES
            kinds["overlays" if overlay else "images without a mask" if suffix in IMAGE_SUFFIXES else suffix] += 1
    if kinds:
        counts = ", ".join(f"{count} {kind or 'without a suffix'}" for kind, count in kinds.items())
        tell(f"data {folder}: files that are neither an image nor a mask are left out: {counts}")


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
        raise InputError(f"mask {stray[0]}: there is no image for it in {images}, expected one of its name")
    for folder in sorted(path for path in masks.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))):
        layers = files(folder, MASK_SUFFIXES)
        if not shared and images != masks.parent and (images / folder.name).is_dir():
            continue  # a subset such as train/, which is matched by itself
        if spelled(folder.name) in found:
            found[spelled(folder.name)].layers.extend((_stem(path), path) for path in layers)
        elif layers and not shared:
            raise InputError(f"masks {folder}: there is no image called {folder.name}, expected one of that name")
    return _checked(found, masks, some)


def _without_overlays(folder: Path, suffixes: Sequence[str], images: Iterable[str] = ()) -> list[Path]:
    """Return the files with one of the suffixes, but for overlays of others, or of images of these names."""
    stems = {_stem(path) for path in files(folder, (*IMAGE_SUFFIXES, *MASK_SUFFIXES))} | set(images)
    overlays = {stem + ending for stem in stems for ending in _OVERLAYS}
    return [path for path in files(folder, suffixes) if _stem(path) not in overlays]


def _images(folder: Path, shared: bool) -> dict[str, Found]:
    """Return the images by stem. In a shared folder, a PNG, TIFF, BMP or GIF may be another's mask by its name."""
    found: dict[str, Found] = {}
    for path in _without_overlays(folder, ALWAYS_IMAGES if shared else IMAGE_SUFFIXES):
        stem = _stem(path)
        if stem in found:
            raise InputError(f"image {path}: there is {found[stem].image.name} too, expected one image of a name")
        found[stem] = Found(image=path)
    if shared:
        # Shorter names first: the name of a mask's image is never longer than the mask's. A PNG is the mask of a TIFF.
        others = [path for path in _without_overlays(folder, MASK_SUFFIXES) if path.suffix.lower() in IMAGE_SUFFIXES]
        for path in sorted(others, key=lambda path: (len(_stem(path)), path.suffix.lower() in _EXACT, path.name)):
            if _owner(_stem(path), found) is None:
                found[_stem(path)] = Found(image=path)
    return found


def _owner(stem: str, found: dict[str, Found]) -> tuple[Found, str] | None:
    """Return the image of that name, or of the longest name that it begins with, and the rest of the name."""
    own = Path(stem)
    if own.suffix.lower() in IMAGE_SUFFIXES and own.stem in found:  # NAME.jpg.png, as Supervisely writes it
        return found[own.stem], ""
    if stem in found:
        return found[stem], ""
    heads = [head for head in found if stem.startswith((f"{head}_", f"{head}-")) and len(stem) > len(head) + 1]
    head = max(heads, key=len, default=None)
    return None if head is None else (found[head], stem[len(head) + 1 :])


def _place(path: Path, found: dict[str, Found], shared: bool) -> bool:
    """Add a mask to its image; return whether it has one."""
    owner = _owner(_stem(path), found)
    if owner is None or (shared and owner[0].image == path):
        return False
    one, rest = owner
    if shared and not rest and path.suffix.lower() not in _EXACT:
        raise InputError(
            f"image {path}: there is {one.image.name} too, expected one image of a name; "
            f"if it is the mask, call it {_stem(path)}_mask{path.suffix}"
        )
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
                    f"save that one as one of {', '.join(ALWAYS_IMAGES)}"
                )
            raise InputError(
                f"mask {masks / stem}.png: no such file, expected a mask for the image {one.image}; "
                "paint one, or take the image out"
            )
    return kept


def _first(folder: Path, names: Sequence[str], suffixes: Sequence[str]) -> Path | None:
    """Return the first sub-folder of these names, in any case, that holds such files or folders of them."""
    below = {path.name.casefold(): path for path in sorted(folder.iterdir()) if path.is_dir()}
    for name in names:
        path = below.get(name.casefold())
        if path and any(files(place, suffixes) for place in (path, *(p for p in path.rglob("*") if p.is_dir()))):
            return path
    return None
