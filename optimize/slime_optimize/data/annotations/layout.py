"""Which mask files belong to which image, told from names alone.

NAME.png, NAME.npy               one whole mask; where images and masks share a folder, beside NAME.jpg or NAME.webp
NAME_mask.png, NAME-parts.png …  the same, named after what it is (WHOLE)
NAME_PART.png, NAME-PART.png     black and white, one for each part
NAME/PART.png                    the same in a folder for each image
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from slime_optimize.data.annotations.images import IMAGE_SUFFIXES
from slime_optimize.errors import InputError

MASK_SUFFIXES = (".png", ".npy")
WHOLE = ("mask", "masks", "label", "labels", "parts", "seg", "segmentation")
_LOSSY = (".jpg", ".jpeg", ".webp")


@dataclass(frozen=True, kw_only=True)
class Found:
    """One image, and its whole masks or its layers (part name, file)."""

    image: Path
    whole: list[Path] = field(default_factory=list)
    layers: list[tuple[str, Path]] = field(default_factory=list)


def files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """Visible files with one of the suffixes, in any case, sorted."""
    found = (path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.is_file())
    return sorted(path for path in found if not path.name.startswith("."))


def match(images: Path, masks: Path, *, some: bool = False) -> list[Found]:
    """The images and their masks, by name; `some`: images without a mask are left out, else refused with InputError."""
    shared = images == masks
    found = _images(images, shared)
    owned = {path for path in files(masks, MASK_SUFFIXES) if _place(path, found, shared)}
    stray = [path for path in files(masks, MASK_SUFFIXES) if path not in owned and path not in _paths(found)]
    if stray:
        raise InputError(
            f"mask {stray[0]}: there is no image for it in {images}, expected a JPEG, PNG or WebP of its name"
        )
    _place_folders(masks, found, shared)
    return _checked(found, masks, some)


def _paths(found: dict[str, Found]) -> set[Path]:
    return {one.image for one in found.values()}


def _images(folder: Path, shared: bool) -> dict[str, Found]:
    """By stem. In a shared folder a PNG is an image unless its name makes it another image's mask."""
    found: dict[str, Found] = {}
    paths = files(folder, _LOSSY if shared else IMAGE_SUFFIXES)
    for path in paths:
        if path.stem in found:
            raise InputError(f"image {path}: there is {found[path.stem].image.name} too, expected one image of a name")
        found[path.stem] = Found(image=path)
    if shared:
        # Shorter names first: the owner of a mask is always shorter than the mask's name.
        for path in sorted(files(folder, (".png",)), key=lambda path: (len(path.stem), path.name)):
            if _owner(path.stem, found) is None:
                found[path.stem] = Found(image=path)
    return found


def _owner(stem: str, found: dict[str, Found]) -> tuple[Found, str] | None:
    """The image of that name, or of the longest name that the mask's begins with; and what is left of the name."""
    if stem in found:
        return found[stem], ""
    heads = [head for head in found if stem.startswith((f"{head}_", f"{head}-")) and len(stem) > len(head) + 1]
    head = max(heads, key=len, default=None)
    return None if head is None else (found[head], stem[len(head) + 1 :])


def _place(path: Path, found: dict[str, Found], shared: bool) -> bool:
    owner = _owner(path.stem, found)
    if owner is None or (shared and owner[0].image == path):
        return False
    one, rest = owner
    if not rest or rest.casefold() in WHOLE:
        one.whole.append(path)
    else:
        one.layers.append((rest, path))
    return True


def _place_folders(masks: Path, found: dict[str, Found], shared: bool) -> None:
    folders = sorted(path for path in masks.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))
    for folder in folders:
        layers = files(folder, MASK_SUFFIXES)
        if layers and folder.name not in found and not shared:
            raise InputError(f"masks {folder}: there is no image called {folder.name}, expected one of that name")
        if folder.name in found:
            found[folder.name].layers.extend((path.stem, path) for path in layers)


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
            raise InputError(
                f"mask {masks / stem}.png: no such file, expected a mask for the image {one.image}; "
                "paint one, or take the image out"
            )
    return kept
