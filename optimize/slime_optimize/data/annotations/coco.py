"""COCO JSON: polygons and run lengths, compressed or not, as CVAT and Label Studio export them too.

An annotation's `iscrowd` is not used: CVAT sets it on its brush masks. Large regions are painted first, so that a part
drawn on top of another stays visible; of regions of equal size the later one is kept. Images without annotations are
left out, because exports list every image that was uploaded. The categories are the parts, by ascending id.

Shape suffixes: H, W image sides.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import numpy.typing as npt
from pycocotools import mask as run_lengths

from slime_optimize.data.annotations.example import (
    Annotated,
    Example,
    NoAreaError,
    check_not_empty,
    index_of,
    is_background,
    parts_from,
    tell_left_out,
)
from slime_optimize.data.annotations.locating import Locator
from slime_optimize.data.annotations.pictures import Picture, check_size, points, read_picture
from slime_optimize.errors import InputError, first_line, note

Json = Mapping[str, Any]


def is_coco(content: object) -> bool:
    """Return whether a JSON document has the keys of COCO's."""
    return isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys()


def read_coco(
    path: Path, content: Json, locator: Locator, parts: Sequence[str] | None, used: Iterable[object]
) -> Annotated:
    """Load every annotated image, whose file `locator` finds; InputError in one line for what cannot be used.

    used: the ids of categories that are parts although `path` itself may show none of them.
    """
    try:
        categories = _categories(content, path)
        images = {_same(entry["id"]): entry for entry in content["images"]}
        regions = _by_image(content, images, categories, path)
        drawn = {categories.get(_same(key)) for key in used}
        names = tuple(parts) if parts is not None else _parts(categories, drawn, path)
        examples = [
            _example(entry, regions[key], categories, names, locator, path)
            for key, entry in images.items()
            if key in regions
        ]
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"COCO {path}: is not laid out as COCO JSON ({reason}); export it again") from error
    if not examples:
        raise InputError(f"COCO {path}: has no annotation of an image, expected one at least; annotate, then export")
    return Annotated(parts=names, examples=tuple(examples))


def _same(key: object) -> object:
    """Return an id as a number where it is one in quotation marks: some tools write both forms into one file."""
    return int(key) if isinstance(key, str) and key.strip().lstrip("-").isdecimal() else key


def _parts(categories: Mapping[Any, str], drawn: Container[str | None], path: Path) -> tuple[str, ...]:
    """Return the parts by ascending id: those that something was drawn of, which is told where it is not all."""
    names = [categories[key] for key in sorted(categories, key=_order)]
    unused = [name for name in names if name not in drawn and not is_background(name)]
    if unused and len(unused) < len(names):
        note(f"COCO {path}: nothing is annotated as {', '.join(map(repr, unused))}, left out of the parts")
        names = [name for name in names if name not in unused]
    return parts_from(names)


def _order(key: object) -> tuple[bool, Any]:
    return isinstance(key, str), key


def _categories(content: Json, path: Path) -> dict[Any, str]:
    categories: dict[Any, str] = {}
    for entry in content["categories"]:
        key, name = _same(entry["id"]), normalize("NFC", entry["name"]).strip()
        if categories.setdefault(key, name) != name:
            raise InputError(
                f"COCO {path}: category {key} is both {categories[key]!r} and {name!r}, expected one name for an id"
            )
    return categories


def _category(region: Json) -> Any:
    return _same(region["category_id"])


def _by_image(
    content: Json, images: Mapping[Any, Json], categories: Mapping[Any, str], path: Path
) -> dict[Any, list[Json]]:
    regions: dict[Any, list[Json]] = defaultdict(list)
    for region in content["annotations"]:
        key = _same(region["image_id"])
        if key not in images:
            raise InputError(
                f"COCO {path}: annotation {region.get('id')} is of image {region['image_id']}, "
                "which is not among its images; export it again"
            )
        if _category(region) not in categories:
            raise InputError(
                f"COCO {path}: annotation {region.get('id')}: has the category id {region['category_id']}, which is "
                f"not among the categories {', '.join(map(str, sorted(categories, key=_order)))}; name it there"
            )
        regions[key].append(region)
    return dict(regions)


def _example(
    entry: Json,
    regions: Sequence[Json],
    categories: Mapping[Any, str],
    parts: Sequence[str],
    locator: Locator,
    path: Path,
) -> Example:
    name = str(entry["file_name"])
    subject = f"COCO {path}: image {name!r}"
    file = locator.find(name, subject)
    picture = read_picture(file)
    check_size(entry.get("width"), entry.get("height"), picture, subject)
    layers = _layers(regions, categories, parts, picture, f"COCO {path}")
    mask_HW = np.zeros(picture.shape, np.uint8)
    # Decoded one at a time: a large picture's regions would fill the memory.
    for index, region in sorted(layers, key=lambda layer: -layer[1].area):
        mask_HW[region.painted()] = index
    check_not_empty(mask_HW, subject)
    return Example(name=file.stem, image_HW3=picture.image_HW3, mask_HW=mask_HW, digest=picture.digest)


def _layers(
    regions: Sequence[Json], categories: Mapping[Any, str], parts: Sequence[str], picture: Picture, source: str
) -> list[tuple[int, Region]]:
    """Return part and region of each annotation. One without an area is left out and told, unless no other is left."""
    layers: list[tuple[int, Region]] = []
    without: list[NoAreaError] = []
    for region in regions:
        subject = f"{source}: annotation {region.get('id')}"
        index = index_of(categories[_category(region)], parts, subject)
        try:
            layers.append((index, region_of(region.get("segmentation"), picture.shape, subject)))
        except NoAreaError as error:
            without.append(error)
    tell_left_out(without, layers)
    return layers


@dataclass(frozen=True, kw_only=True)
class Region:
    """A region as compressed run lengths: as pixels, a large picture's regions would fill the memory."""

    lengths: Json
    subject: str

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(run_lengths.area(self.lengths))

    def painted(self) -> npt.NDArray[np.bool_]:
        """Return the pixels, (H,W) bool."""
        return np.asarray(run_lengths.decode(self.lengths), bool)


def region_of(segmentation: object, shape: tuple[int, int], subject: str) -> Region:
    """Return the region of an annotation's `segmentation`; InputError with `subject` for what cannot be one."""
    if isinstance(segmentation, list) and segmentation:
        rings = segmentation if isinstance(segmentation[0], list) else [segmentation]
        flat = [[float(number) for point in points(ring, shape, subject) for number in point] for ring in rings]
        areas = [ring for ring in flat if len(ring) >= 6]
        if not areas:
            raise NoAreaError(f"{subject}: has a polygon of fewer than 3 points; remove or redraw it")
        if len(areas) < len(flat):
            note(f"{subject}: has a polygon of fewer than 3 points among others; left out")
        return Region(lengths=run_lengths.merge(run_lengths.frPyObjects(areas, *shape)), subject=subject)
    if isinstance(segmentation, dict):
        return Region(lengths=_compressed(segmentation, shape, subject), subject=subject)
    raise NoAreaError(
        f"{subject}: has no outline, only a box or key points, expected polygons or a mask; "
        "draw the part with the polygon or brush tool"
    )


def _compressed(segmentation: Json, shape: tuple[int, int], subject: str) -> dict[str, Any]:
    counts = segmentation["counts"]
    if list(segmentation["size"]) != list(shape):
        raise InputError(
            f"{subject}: its run lengths are for [height, width] {segmentation['size']}, expected {list(shape)} "
            "as the image; export it with the images"
        )
    if isinstance(counts, str):
        # The decoder trusts the lengths, and leaves its memory as it was where they end too early.
        if sum(_lengths(counts, subject)) != shape[0] * shape[1]:
            raise _broken(subject)
        return {"size": list(shape), "counts": counts.encode()}
    whole = all(type(number) is int and number >= 0 for number in counts)
    if not whole or sum(counts) != shape[0] * shape[1]:
        raise _broken(subject)
    made: dict[str, Any] = run_lengths.frPyObjects({"size": list(shape), "counts": counts}, *shape)
    return made


def _lengths(counts: str, subject: str) -> list[int]:
    """Return compressed run lengths as numbers.

    Each is written in digits of 5 bits, from the character "0" on; the sixth bit says that more digits follow. From the
    fourth number on, each is the signed difference to the one before the last.
    """
    lengths: list[int] = []
    value = bits = 0
    for character in counts:
        digit = ord(character) - ord("0")
        if not 0 <= digit < 64:
            raise _broken(subject)
        value |= (digit & 31) << bits
        bits += 5
        if not digit & 32:
            value -= (digit & 16) and 1 << bits
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = bits = 0
    if bits or min(lengths, default=-1) < 0:
        raise _broken(subject)
    return lengths


def _broken(subject: str) -> InputError:
    return InputError(f"{subject}: its run lengths do not fill the image; export it again")
