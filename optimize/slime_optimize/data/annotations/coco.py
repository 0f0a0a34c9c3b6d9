"""COCO JSON: polygons and run lengths, compressed or not, as CVAT and Label Studio export them too.

An annotation's `iscrowd` does not matter here: CVAT marks its brush masks so. Large regions are painted first, so that
a part drawn on top of another stays visible; of regions of one size the later one wins. Images without annotations are
left out: exports list all that were uploaded. Categories are the parts, by ascending id.

Shape suffixes: H, W image sides.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slime_optimize.data.annotations.example import Annotated, Example, check_not_empty
from slime_optimize.data.annotations.images import Picture, check_size, find_image, read_picture
from slime_optimize.data.annotations.names import index_of, parts_from
from slime_optimize.data.annotations.regions import Region, region_of
from slime_optimize.errors import InputError, first_line

Json = Mapping[str, Any]


def is_coco(content: object) -> bool:
    return isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys()


def read_coco(path: Path, content: Json, folders: Sequence[Path], parts: Sequence[str] | None) -> Annotated:
    """Every annotated image, looked for in `folders`; InputError in one line for what cannot be used."""
    try:
        categories = _categories(content, path)
        names = tuple(parts) if parts is not None else parts_from(categories[key] for key in sorted(categories))
        images = {entry["id"]: entry for entry in content["images"]}
        regions = _by_image(content, images, path)
        examples = [
            _example(entry, regions[key], categories, names, folders, path)
            for key, entry in images.items()
            if key in regions
        ]
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"COCO {path}: is not laid out as COCO JSON ({reason}); export it again") from error
    if not examples:
        raise InputError(f"COCO {path}: has no annotation of an image, expected one at least; annotate, then export")
    return Annotated(parts=names, examples=tuple(examples))


def _categories(content: Json, path: Path) -> dict[int, str]:
    categories: dict[int, str] = {}
    for entry in content["categories"]:
        if categories.setdefault(entry["id"], entry["name"]) != entry["name"]:
            raise InputError(
                f"COCO {path}: category {entry['id']} is both {categories[entry['id']]!r} and {entry['name']!r}, "
                "expected one name for an id"
            )
    return categories


def _by_image(content: Json, images: Mapping[Any, Json], path: Path) -> dict[Any, list[Json]]:
    regions: dict[Any, list[Json]] = defaultdict(list)
    for region in content["annotations"]:
        if region["image_id"] not in images:
            raise InputError(
                f"COCO {path}: annotation {region.get('id')} is of image {region['image_id']}, "
                "which is not among its images; export it again"
            )
        regions[region["image_id"]].append(region)
    return dict(regions)


def _example(
    entry: Json,
    regions: Sequence[Json],
    categories: Mapping[int, str],
    parts: Sequence[str],
    folders: Sequence[Path],
    path: Path,
) -> Example:
    name = str(entry["file_name"])
    subject = f"COCO {path}: image {name!r}"
    picture = read_picture(find_image(name, folders, subject))
    check_size(entry.get("width"), entry.get("height"), picture, subject)
    layers = [_layer(region, categories, parts, picture, f"COCO {path}") for region in regions]
    mask_HW = np.zeros(picture.shape, np.uint8)
    # Decoded one at a time: a large picture's regions would fill the memory.
    for index, region in sorted(layers, key=lambda layer: -layer[1].area):
        mask_HW[region.painted()] = index
    check_not_empty(mask_HW, subject)
    stem = Path(name.replace("\\", "/")).stem
    return Example(name=stem, image_HW3=picture.image_HW3, mask_HW=mask_HW, digest=picture.digest)


def _layer(
    region: Json, categories: Mapping[int, str], parts: Sequence[str], picture: Picture, source: str
) -> tuple[int, Region]:
    subject = f"{source}: annotation {region.get('id')}"
    if region["category_id"] not in categories:
        raise InputError(
            f"{subject}: has the category id {region['category_id']}, which is not among the categories "
            f"{', '.join(map(str, sorted(categories)))}; name it there"
        )
    index = index_of(categories[region["category_id"]], parts, subject)
    return index, region_of(region.get("segmentation"), picture.shape, subject)
