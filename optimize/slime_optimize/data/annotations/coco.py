"""COCO JSON: polygons and run lengths, compressed or not, as CVAT and Label Studio export them too.

An annotation's `iscrowd` is not used: CVAT sets it on its brush masks. Large regions are painted first, so that a part
drawn on top of another stays visible; of regions of equal size the later one is kept, and void lies on all of them.
Images without annotations are left out, because exports list every image that was uploaded. The categories are the
parts, by ascending id.

Shape suffixes: H, W image sides.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from slime_optimize.data.annotations.example import (
    Annotated,
    Example,
    NoAreaError,
    index_of,
    spelled,
    tell_left_out,
)
from slime_optimize.data.annotations.locating import Locator
from slime_optimize.data.annotations.pictures import Picture, check_size, read_picture
from slime_optimize.data.annotations.regions import Region, drawn_parts, example_of, region_of
from slime_optimize.errors import InputError, first_line

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
        by_id = [categories[key] for key in sorted(categories, key=_order)]
        names = tuple(parts) if parts is not None else drawn_parts(by_id, drawn, f"COCO {path}")
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


def _order(key: object) -> tuple[bool, Any]:
    return isinstance(key, str), key


def _categories(content: Json, path: Path) -> dict[Any, str]:
    categories: dict[Any, str] = {}
    for entry in content["categories"]:
        key, name = _same(entry["id"]), spelled(entry["name"])
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
    return example_of(layers, picture, file, subject)


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
