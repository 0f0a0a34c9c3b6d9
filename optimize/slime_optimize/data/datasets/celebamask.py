"""CelebAMask-HQ (Lee et al., 2020): faces of 1024 pixels, and masks of 512, one file for each part.

    SOURCE/…/CelebA-HQ-img/17.jpg                              0 to 29999
    SOURCE/…/CelebAMask-HQ-mask-anno/0/00017_l_brow.png        2000 images a folder; no file: the part is not seen
    SOURCE/…/CelebA-HQ-to-CelebA-mapping.txt                   idx orig_idx orig_file, for a split

Left and right parts are merged.

Shape suffixes: H, W image sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from slime_image import load
from slime_optimize.data.annotations import Example
from slime_optimize.data.datasets.plan import Plan, Read, chosen_parts, found_below, listed, painted
from slime_optimize.errors import InputError, first_line

# In the order they are painted: hair lies over the face and everything in it. Glasses (eye_g), hat, earring (ear_r)
# and necklace (neck_l) are not among the paper's parts: their pixels keep what other files say of them.
MERGED: dict[str, tuple[str, ...]] = {
    "face": ("skin",),
    "eye": ("l_eye", "r_eye"),
    "mouth": ("mouth", "u_lip", "l_lip"),
    "nose": ("nose",),
    "eyebrow": ("l_brow", "r_brow"),
    "ear": ("l_ear", "r_ear"),
    "neck": ("neck",),
    "cloth": ("cloth",),
    "hair": ("hair",),
}
PARTS = ("background", "face", "cloth", "eyebrow", "ear", "eye", "hair", "mouth", "neck", "nose")
_IN_A_FOLDER = 2000
# Last image of CelebA's own partition, by the number of its file.
_LAST = {"train": 162770, "val": 182637, "test": 202599}
_MAPPING = "CelebA-HQ-to-CelebA-mapping.txt"


def celebamask(source: Path, *, split: str | None = None, parts: Sequence[str] | None = None) -> Plan:
    """Return the plan for every face, at the size of the masks.

    split: train, val or test of CelebA's own partition; a file of names (17.jpg of CelebA-HQ, or 000017.jpg of CelebA);
    None for all images. Raises InputError, in one line, for what is not there.
    """
    images, masks = found_below(source, "CelebA-HQ-img"), found_below(source, "CelebAMask-HQ-mask-anno")
    if images is None or masks is None:
        raise InputError(f"data {source}: expected the folders CelebA-HQ-img and CelebAMask-HQ-mask-anno below it")
    names = chosen_parts(parts, PARTS, "a face")
    about = {
        "dataset": "CelebAMask-HQ",
        "kind": "face",
        "split": split or "all",
        "merged": {part: list(MERGED[part]) for part in names[1:]},
        "painted_in_order": list(MERGED),
        "size": "of the masks; images are reduced to it, bilinearly",
    }
    numbers = _all(images) if split is None else _listed(source, split)
    items = tuple(partial(_read, images / f"{one}.jpg", masks, one, names) for one in numbers)
    return Plan(parts=names, items=items, about=about)


def _all(images: Path) -> list[int]:
    return sorted(int(path.stem) for path in images.glob("*.jpg") if path.stem.isdecimal())


def _listed(source: Path, split: str) -> list[int]:
    """Return the numbers of a split's images in CelebA-HQ."""
    if split in _LAST:
        first = 1 + max((last for name, last in _LAST.items() if last < _LAST[split]), default=0)
        return [number for origin, number in _origins(source).items() if first <= origin <= _LAST[split]]
    if not Path(split).is_file():
        raise InputError(f"--split {split}: no such file, expected {', '.join(_LAST)}, or a file of image names")
    stems = [Path(name).stem for name in listed(Path(split))]
    origins = _origins(source) if any(len(stem) == 6 for stem in stems) else {}
    try:  # a name of CelebA has six digits, one of CelebA-HQ at most five
        return [origins[int(stem)] if len(stem) == 6 else int(stem) for stem in stems]
    except (ValueError, KeyError) as error:
        raise InputError(
            f"--split {split}: {error.args[0]} is no image of CelebA-HQ, expected such as 17.jpg"
        ) from error


def _origins(source: Path) -> dict[int, int]:
    """Return the numbers of images in CelebA-HQ by their numbers in CelebA."""
    path = found_below(source, _MAPPING)
    if path is None:
        raise InputError(f"data {source}: has no {_MAPPING}, expected it there for a split of CelebA; or name a file")
    try:
        rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines()[1:] if line.strip()]
        return {int(Path(row[2]).stem): int(row[0]) for row in rows}
    except (OSError, ValueError, IndexError) as error:
        raise InputError(f"data {path}: not readable ({first_line(error)}); expected idx orig_idx orig_file") from error


def _read(picture: Path, masks: Path, number: int, parts: tuple[str, ...]) -> Read:
    stem = masks / str(number // _IN_A_FOLDER) / f"{number:05}"
    found = [(part, stem.with_name(f"{stem.name}_{name}.png")) for part, names in MERGED.items() for name in names]
    layers = [(part, _layer(path)) for part, path in found if path.exists()]
    shapes = {layer_HW.shape for _, layer_HW in layers}
    if len(shapes) > 1:
        raise InputError(f"data {stem}_*.png: are of {len(shapes)} sizes, expected one")
    if not layers:
        return Read(left_out={"without a mask": 1})
    mask_HW = painted(layers, parts, layers[0][1].shape)
    if not mask_HW.any():
        return Read(left_out={"without any of the parts": 1})
    return Read(examples=(Example(name=f"{number:05}", image_HW3=_reduced(picture, mask_HW), mask_HW=mask_HW),))


def _layer(path: Path) -> npt.NDArray[np.bool_]:
    """Load a mask, black and white, grey or RGB, as (H,W) bool."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("L")) > 127
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"mask {path}: not a readable picture ({first_line(error)})") from error


def _reduced(picture: Path, mask_HW: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    image = Image.fromarray(load(picture))
    return np.asarray(image.resize((mask_HW.shape[1], mask_HW.shape[0]), Image.Resampling.BILINEAR))
