"""PASCAL-Part (Chen et al., 2014): part masks of VOC 2010's images, one crop for each object, by the paper's rules.

    SOURCE/…/Annotations_Part/2008_000008.mat        anno: imname, objects(class, class_ind, bbox, mask, parts)
    SOURCE/…/JPEGImages/2008_000008.jpg              VOC 2010's
    SOURCE/…/ImageSets/Main/car_val.txt              VOC 2010's, for a split

An object is left out when the box of its mask is small, or shares 5 % of IoU or more with the box of any other object
of the image. Shape suffixes: H, W image sides.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.io import loadmat

from slime_image import load
from slime_optimize.data.annotations import Example
from slime_optimize.data.datasets.plan import Plan, Read, chosen_parts, found_below, listed, painted
from slime_optimize.errors import InputError, first_line

MOST_OVERLAP = 0.05  # IoU of two objects' boxes, from which both are left out
_LEGS = tuple(f"{side}{end}{piece}" for side in "lr" for end in "fb" for piece in ("uleg", "lleg", "ho"))
_SIDES = ("frontside", "leftside", "rightside", "backside", "roofside")
Box = tuple[int, int, int, int]  # top, bottom, left, right; the ends exclusive


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A class: the annotated parts that make each of the paper's, in the order they are painted, and the least area."""

    merged: Mapping[str, tuple[str, ...]]
    least_area: int  # of the box, in pixels

    @property
    def parts(self) -> tuple[str, ...]:
        return ("background", *self.merged)

    def part_of(self, name: str) -> str | None:
        """Return the part that `name`, such as wheel_2, belongs to, or None."""
        stem = re.sub(r"_\d+$", "", name)
        return next((part for part, names in self.merged.items() if stem in names), None)


KINDS: dict[str, Kind] = {
    "car": Kind(
        merged={  # the body first: what else lies on it is no longer body
            "body": (*_SIDES, "door", "leftmirror", "rightmirror"),
            "light": ("headlight",),
            "plate": ("fliplate", "bliplate"),
            "wheel": ("wheel",),
            "window": ("window",),
        },
        least_area=50 * 50,
    ),
    "horse": Kind(
        merged={
            "head": ("head", "leye", "reye", "lear", "rear", "muzzle"),
            "leg": _LEGS,
            "neck+torso": ("neck", "torso"),
            "tail": ("tail",),
        },
        least_area=32 * 32,
    ),
}


def pascal_part(
    source: Path, kind: str, *, split: str | None = None, images: Path | None = None, parts: Sequence[str] | None = None
) -> Plan:
    """Return the plan for every object of `kind`, as a crop of its own.

    split: train, val or trainval of VOC 2010; a file of image names; None for all annotations. images: the folder
    JPEGImages, when it is not below `source`. Raises InputError, in one line, for what is not there.
    """
    if kind not in KINDS:
        raise InputError(f"--kind {kind}: unknown, expected one of {', '.join(KINDS)}")
    annotations = found_below(source, "Annotations_Part")
    pictures = images or found_below(source, "JPEGImages")
    for folder, what in ((annotations, "Annotations_Part of PASCAL-Part"), (pictures, "JPEGImages of VOC 2010")):
        if folder is None or not folder.is_dir():
            raise InputError(f"data {source}: has no folder {what}, expected both below it, or --images FOLDER")
    assert annotations is not None and pictures is not None
    rules = KINDS[kind]
    names = chosen_parts(parts, rules.parts, f"a {kind}")
    about = {
        "dataset": "PASCAL-Part",
        "kind": kind,
        "split": split or "all",
        "merged": {part: list(rules.merged[part]) for part in names[1:]},
        "crop": "the box of the object's mask",
        "left_out_from_box_iou": MOST_OVERLAP,
        "left_out_under_box_area": rules.least_area,
    }
    wanted = _wanted(source, annotations, kind, split)
    items = tuple(partial(_read, annotations / f"{one}.mat", pictures / f"{one}.jpg", kind, names) for one in wanted)
    return Plan(parts=names, items=items, about=about)


def _wanted(source: Path, annotations: Path, kind: str, split: str | None) -> list[str]:
    """Return the names of the images to read, without a suffix."""
    if split is None:
        return sorted(path.stem for path in annotations.glob("*.mat"))
    path = found_below(source, f"ImageSets/Main/{kind}_{split}.txt") or Path(split)
    if not path.is_file():
        raise InputError(
            f"--split {split}: there is no ImageSets/Main/{kind}_{split}.txt below {source}, and no file {split}; "
            "expected train, val, trainval, or a file of image names"
        )
    return listed(path)


def _read(annotation: Path, picture: Path, kind: str, parts: tuple[str, ...]) -> Read:
    """Read the crops of one image, named after the object's number in the annotation, from 1 on."""
    objects = _objects(annotation)
    boxes = [_box(np.asarray(each["mask"]) > 0) for each in objects]
    kept, left_out = _kept(objects, boxes, kind)
    if not kept:
        return Read(left_out=left_out)
    mask_HW = _mask([objects[index] for index in kept], kind, parts, annotation)
    image_HW3 = load(picture)
    if image_HW3.shape[:2] != mask_HW.shape:
        raise InputError(f"data {annotation}: its masks are {mask_HW.shape}, the image {image_HW3.shape[:2]} pixels")
    examples = []
    for index in kept:
        top, bottom, left, right = boxes[index]
        inside = slice(top, bottom), slice(left, right)
        if mask_HW[inside].any():
            name = f"{annotation.stem}_{index + 1}"
            examples.append(Example(name=name, image_HW3=image_HW3[inside], mask_HW=mask_HW[inside]))
    without = len(kept) - len(examples)
    return Read(
        examples=tuple(examples), left_out=left_out | ({"without any of the parts": without} if without else {})
    )


def _objects(path: Path) -> list[dict[str, Any]]:
    """Return anno.objects, each with class, mask and parts."""
    try:
        found = _several(loadmat(path, appendmat=False, simplify_cells=True)["anno"]["objects"])
    except FileNotFoundError as error:
        raise InputError(f"data {path}: no such file; expected an annotation for each image of the split") from error
    except Exception as error:  # scipy's reader raises of every kind; the user gets one line
        raise InputError(f"data {path}: not an annotation of PASCAL-Part ({first_line(error)})") from error
    for each in found:
        if not {"class", "mask", "parts"} <= each.keys():
            raise InputError(f"data {path}: has an object of {', '.join(each)}, expected class, mask and parts")
    return found


def _several(value: Any) -> list[dict[str, Any]]:
    """Return the structs of an array, which scipy reads as an empty array, one struct, or a list."""
    return [value] if isinstance(value, dict) else [each for each in value if isinstance(each, dict)]


def _kept(objects: Sequence[Mapping[str, Any]], boxes: Sequence[Box], kind: str) -> tuple[list[int], dict[str, int]]:
    """Return the indices of the objects that pass the rules, and how many were left out for which reason."""
    kept, left_out = [], Counter[str]()
    for index, each in enumerate(objects):
        if each["class"] != kind:
            continue
        if max((_iou(boxes[index], other) for i, other in enumerate(boxes) if i != index), default=0) >= MOST_OVERLAP:
            left_out["overlap another object"] += 1
        elif _area(boxes[index]) < KINDS[kind].least_area:
            left_out["too small"] += 1
        elif not _several(each["parts"]):
            left_out["without any of the parts"] += 1
        else:
            kept.append(index)
    return kept, dict(left_out)


def _box(mask_HW: npt.NDArray[np.bool_]) -> Box:
    """Return the box of the pixels that are set, all 0 for an empty mask."""
    ys, xs = np.nonzero(mask_HW)
    if not len(ys):
        return (0, 0, 0, 0)
    return int(ys.min()), int(ys.max()) + 1, int(xs.min()), int(xs.max()) + 1


def _iou(one: Box, other: Box) -> float:
    high = max(0, min(one[1], other[1]) - max(one[0], other[0]))
    wide = max(0, min(one[3], other[3]) - max(one[2], other[2]))
    return high * wide / max(1, _area(one) + _area(other) - high * wide)


def _area(box: Box) -> int:
    top, bottom, left, right = box
    return (bottom - top) * (right - left)


def _mask(objects: Sequence[Mapping[str, Any]], kind: str, parts: tuple[str, ...], path: Path) -> npt.NDArray[np.uint8]:
    """Return the parts of all these objects over the whole image: a neighbour's wheel in a crop is a wheel too."""
    rules = KINDS[kind]
    layers = []
    for each in objects:
        for part in _several(each["parts"]):
            merged = rules.part_of(str(part["part_name"]))
            if merged is None:
                raise InputError(f"data {path}: a {kind} has the part {part['part_name']!r}, expected a known one")
            layers.append((merged, np.asarray(part["mask"]) > 0))
    order = list(rules.merged)
    layers.sort(key=lambda layer: order.index(layer[0]))
    return painted(layers, parts, np.asarray(objects[0]["mask"]).shape)
