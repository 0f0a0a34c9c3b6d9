"""Masks as COCO annotations: run lengths by pycocotools, one annotation for each part that an image shows.

Background (part 0) is no category. An image has a file of its own first, so that a run can stop anywhere; `merged`
makes the data set's one file of them.
"""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from slime_client.mask import Mask


def encoded(mask: Mask, image: str) -> bytes:
    """COCO JSON of one image.

    Args:
        mask: its parts.
        image: its file's name.
    """
    height, width = mask.array.shape
    return _json(
        {
            "images": [{"id": 1, "file_name": image, "width": width, "height": height}],
            "categories": [{"id": index, "name": part} for index, part in enumerate(mask.parts) if index],
            "annotations": [_annotation(mask, int(index)) for index in np.unique(mask.array) if index],
        }
    )


def merged(files: Iterable[bytes]) -> bytes:
    """COCO JSON of several images, from those of each; categories of one name become one."""
    whole: dict[str, list[dict[str, Any]]] = {"images": [], "categories": [], "annotations": []}
    categories: dict[str, int] = {}
    for number, content in enumerate(files, 1):
        one = json.loads(content)
        names = {category["id"]: category["name"] for category in one["categories"]}
        for name in names.values():
            categories.setdefault(name, len(categories) + 1)
        whole["images"] += [{**image, "id": number} for image in one["images"]]
        whole["annotations"] += [
            {
                **annotation,
                "id": len(whole["annotations"]) + place,
                "image_id": number,
                "category_id": categories[names[annotation["category_id"]]],
            }
            for place, annotation in enumerate(one["annotations"], 1)
        ]
    whole["categories"] = [{"id": index, "name": name} for name, index in categories.items()]
    return _json(whole)


def _annotation(mask: Mask, index: int) -> dict[str, Any]:
    from pycocotools import mask as lengths

    runs = lengths.encode(np.asfortranarray(mask.array == index, np.uint8))
    return {
        "id": index,
        "image_id": 1,
        "category_id": index,
        "iscrowd": 0,
        "area": int(lengths.area(runs)),
        "bbox": [float(edge) for edge in lengths.toBbox(runs)],
        "segmentation": {"size": [int(side) for side in runs["size"]], "counts": runs["counts"].decode("ascii")},
    }


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()
