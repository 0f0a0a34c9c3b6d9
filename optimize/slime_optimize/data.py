"""Annotated images from files: a picture, and a PNG mask of the same size whose values are part indices.

Everything a user can get wrong about them is found here, before a backbone is loaded.

Shape suffixes: H, W image sides.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from slime_image import load
from slime_optimize.errors import InputError, first_line
from slime_was.contract import MAX_PARTS


@dataclass(frozen=True, kw_only=True)
class Example:
    """image (H,W,3) uint8 RGB; mask (H,W) uint8 of part indices; sha256 of the image file."""

    name: str
    image_HW3: npt.NDArray[np.uint8]
    mask_HW: npt.NDArray[np.uint8]
    digest: str = ""


def check_parts(names: Sequence[str]) -> tuple[str, ...]:
    """The part names, background first, stripped; InputError for too few, too many, empty, or twice the same."""
    parts = tuple(name.strip() for name in names)
    if not 2 <= len(parts) <= MAX_PARTS:
        raise InputError(
            f"parts: got {len(parts)} names, expected 2 to {MAX_PARTS}, background first "
            "(the text encoder holds 77 tokens)"
        )
    for index, name in enumerate(parts):
        if not name:
            raise InputError(f"parts: name {index} is empty, expected a word for each part")
        if name in parts[:index]:
            raise InputError(f"parts: {name!r} is named twice, expected each part once")
    return parts


def load_example(image: Path, mask: Path, parts: Sequence[str]) -> Example:
    """Reads one pair; ImageError or InputError, in one line, when it cannot be used with `parts`."""
    image_HW3 = load(image)
    mask_HW = load_mask(mask)
    if mask_HW.shape != image_HW3.shape[:2]:
        raise InputError(
            f"mask {mask}: is {_size(mask_HW)}, expected {_size(image_HW3)} as the image {image}; "
            "paint the mask over the image itself"
        )
    beyond = sorted(set(np.unique(mask_HW).tolist()) - set(range(len(parts))))
    if beyond:
        some = ", ".join(map(str, beyond[:5])) + (", …" if len(beyond) > 5 else "")
        raise InputError(
            f"mask {mask}: has the part ids {some}, expected 0 to {len(parts) - 1} for {len(parts)} parts; "
            "name every part, or repaint the mask without smoothing"
        )
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    return Example(name=image.stem, image_HW3=image_HW3, mask_HW=mask_HW, digest=digest)


def load_training(images: Sequence[Path], masks: Sequence[Path], parts: Sequence[str]) -> list[Example]:
    """The pairs to learn from; InputError also when a part other than the background is in no mask."""
    if len(images) != len(masks):
        raise InputError(
            f"training data: got {len(images)} images and {len(masks)} masks, expected a mask for each image, in order"
        )
    examples = [load_example(image, mask, parts) for image, mask in zip(images, masks, strict=True)]
    painted = set().union(*(np.unique(example.mask_HW).tolist() for example in examples))
    missing = [f"{name!r} (id {index})" for index, name in enumerate(parts) if index and index not in painted]
    if missing:
        raise InputError(
            f"mask {', '.join(str(mask) for mask in masks)}: has no pixel of {', '.join(missing)}; "
            "paint the part, or leave it out of --parts"
        )
    return examples


def load_mask(path: Path) -> npt.NDArray[np.uint8]:
    """A grayscale or palette PNG -> its raw values, uint8 (H,W)."""
    try:
        with Image.open(path) as image:
            form, mode = image.format, image.mode
            values = np.array(image) if form == "PNG" and mode in ("L", "P") else None
    except FileNotFoundError as error:
        raise InputError(f"mask {path}: no such file") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"mask {path}: not a readable picture ({first_line(error)}); expected a PNG") from error
    if values is None:
        raise InputError(
            f"mask {path}: is a {form} of mode {mode}, expected a PNG of 8-bit grey or palette values, "
            "each the index of a part"
        )
    return values


def dataset(folder: Path) -> tuple[tuple[str, ...], list[tuple[Path, Path]]]:
    """A folder of images/NAME.png, masks/NAME.png and parts.json -> part names, pairs of paths by name."""
    try:
        names = json.loads((folder / "parts.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"data {folder}: its parts.json cannot be read ({first_line(error)}); "
            "expected images/*.png, masks/*.png and parts.json, a list of part names"
        ) from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"data {folder / 'parts.json'}: expected a JSON list of part names, background first")
    images = sorted((folder / "images").glob("*.png"))
    if not images:
        raise InputError(f"data {folder}: has no images/*.png; expected images/NAME.png and masks/NAME.png")
    return check_parts(names), [(image, folder / "masks" / image.name) for image in images]


def _size(array: npt.NDArray[np.uint8]) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"
