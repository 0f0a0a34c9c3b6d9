"""Masks as GeoJSON polygons, traced by contourpy: one MultiPolygon for each part that an image shows, holes included.

Coordinates are pixels, x to the right and y down from the image's upper left corner, so a pixel's centre ends in .5.
The lines run halfway between the centres of pixels of the part and of others: exactly the part's centres are inside.
"""

import json
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from slime_client.mask import Mask

Ring = list[list[float]]


def encoded(mask: Mask, image: str) -> bytes:
    """A GeoJSON FeatureCollection; each feature has the properties part, index, colour and pixels.

    Args:
        mask: its parts; the background (part 0) is left out.
        image: its file's name, a member of the collection.
    """
    height, width = mask.array.shape
    features = [_feature(mask, int(index)) for index in np.unique(mask.array) if index]
    whole = {"type": "FeatureCollection", "image": image, "width": width, "height": height, "features": features}
    return json.dumps(whole, ensure_ascii=False).encode()


def polygons(inside_HW: npt.NDArray[np.bool_]) -> list[list[Ring]]:
    """The outlines of a set of pixels: for each polygon its outer ring, then its holes; every ring is closed."""
    from contourpy import contour_generator

    # A border, so that outlines close at the image's edge; centres lie at half pixels.
    padded = np.pad(inside_HW, 1).astype(np.float64)
    height, width = padded.shape
    contours = contour_generator(x=np.arange(width) - 0.5, y=np.arange(height) - 0.5, z=padded, fill_type="OuterOffset")
    points, offsets = contours.filled(0.5, 2.0)
    return [
        [outline[start:end].tolist() for start, end in pairwise(cuts)]
        for outline, cuts in zip(points, offsets, strict=True)
    ]


def _feature(mask: Mask, index: int) -> dict[str, Any]:
    inside_HW = mask.array == index
    return {
        "type": "Feature",
        "properties": {
            "part": mask.parts[index],
            "index": index,
            "colour": list(mask.colours[index]),
            "pixels": int(inside_HW.sum()),
        },
        "geometry": {"type": "MultiPolygon", "coordinates": polygons(inside_HW)},
    }
