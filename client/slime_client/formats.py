"""The files a mask can become, and whether a file that is there is whole. COCO and GeoJSON need the extra `formats`.

COCO: run lengths by pycocotools, one annotation for each part that an image shows; background (part 0) is no category.
An image has a file of its own first, so that a run can stop anywhere; `merged_coco` makes the data set's one file.

GeoJSON: outlines by contourpy, one MultiPolygon for each part that an image shows, holes included. Coordinates are
pixels, x to the right and y down from the image's upper left corner, so a pixel's centre ends in .5. The lines run
halfway between the centres of pixels of the part and of others: exactly the part's centres are inside.

Letters in names: H, W pixels of the image as seen, K parts.
"""

import contextlib
import importlib.util
import io
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from slime_client.errors import FAILED_PRECONDITION, SegmenterError
from slime_client.images import saved, write_file
from slime_client.mask import Mask

_JPEG_QUALITY = 90
_PNG_END = b"IEND\xaeB`\x82"
_JPEG_END = b"\xff\xd9"
Ring = list[list[float]]


@dataclass(frozen=True, kw_only=True)
class Format:
    """A kind of result.

    Attributes:
        ending: what follows the image's stem in the file's name; with a folder before it, where it has one.
        encode: makes the file's content, from a mask and the name of its image.
        whole: says whether a file's content is such a file, to its end.
        meaning: what is in it, for people.
        needs: a package of the extra `formats`, or "".
    """

    ending: str
    encode: Callable[[Mask, str], bytes]
    whole: Callable[[bytes], bool]
    meaning: str
    needs: str = ""

    def check(self) -> None:
        """Check that it can be made here.

        Raises:
            SegmenterError: FAILED_PRECONDITION where its package is missing.
        """
        if self.needs and importlib.util.find_spec(self.needs) is None:
            message = f"{self.meaning}: {self.needs} is missing; pip install 'slime-serve[formats]'"
            raise SegmenterError(message, FAILED_PRECONDITION)

    def path(self, folder: Path, stem: str) -> Path:
        """Return where the file of an image of this stem goes."""
        subfolder, _, ending = self.ending.rpartition("/")
        return folder / subfolder / f"{stem}{ending}"

    def write(self, path: Path, mask: Mask, image: str) -> None:
        """Write the file, whole or not at all; `image` is the name of the mask's image.

        Raises:
            SegmenterError: INVALID_ARGUMENT when the folder cannot be written; FAILED_PRECONDITION as `check`.
        """
        self.check()
        content = self.encode(mask, image)
        with contextlib.suppress(OSError):  # Writing the file says what is wrong.
            path.parent.mkdir(exist_ok=True)
        write_file(path, content)

    def is_whole(self, path: Path) -> bool:
        """Return whether the file is there, to its end."""
        try:
            return self.whole(path.read_bytes())
        except (OSError, ValueError):
            return False


def merged_coco(files: Iterable[bytes]) -> bytes:
    """Return COCO JSON of several images, from those of each; categories of one name become one."""
    files = list(files)
    return b"".join(coco_pieces(lambda: files))


def coco_pieces(files: Callable[[], Iterable[bytes]]) -> Iterator[bytes]:
    """Yield what `merged_coco` returns, piece by piece; `files` is called twice, so that nothing need be kept."""
    categories: dict[str, int] = {}
    yield b'{"images": ['
    for number, content in enumerate(files(), 1):
        one = json.loads(content)
        for category in one["categories"]:
            categories.setdefault(category["name"], len(categories) + 1)
        yield b", " * (number > 1) + b", ".join(_json({**image, "id": number}) for image in one["images"])
    yield b'], "categories": ' + _json([{"id": index, "name": name} for name, index in categories.items()])
    yield b', "annotations": ['
    annotations = 0
    for number, content in enumerate(files(), 1):
        one = json.loads(content)
        names = {category["id"]: category["name"] for category in one["categories"]}
        for annotation in one["annotations"]:
            annotations += 1
            told = {"id": annotations, "image_id": number, "category_id": categories[names[annotation["category_id"]]]}
            yield b", " * (annotations > 1) + _json({**annotation, **told})
    yield b"]}"


def polygons(inside_HW: npt.NDArray[np.bool_]) -> list[list[Ring]]:
    """Return the outlines of a set of pixels: for each polygon its outer ring, then its holes; every ring is closed."""
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


def _npz(mask: Mask, image: str) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, mask=mask.array, parts=np.array(mask.parts), colours=np.array(mask.colours, np.uint8))
    return buffer.getvalue()


def _coco(mask: Mask, image: str) -> bytes:
    from pycocotools import mask as lengths

    height, width = mask.array.shape
    annotations = []
    for index in _parts_shown(mask):
        runs = lengths.encode(np.asfortranarray(mask.array == index, np.uint8))
        annotations.append(
            {
                "id": index,
                "image_id": 1,
                "category_id": index,
                "iscrowd": 0,
                "area": int(lengths.area(runs)),
                "bbox": [float(edge) for edge in lengths.toBbox(runs)],
                "segmentation": {
                    "size": [int(side) for side in runs["size"]],
                    "counts": runs["counts"].decode("ascii"),
                },
            }
        )
    images = [{"id": 1, "file_name": image, "width": width, "height": height}]
    categories = [{"id": index, "name": part} for index, part in enumerate(mask.parts) if index]
    return _json({"images": images, "categories": categories, "annotations": annotations})


def _geojson(mask: Mask, image: str) -> bytes:
    height, width = mask.array.shape
    features = []
    for index in _parts_shown(mask):
        inside_HW = mask.array == index
        colour, pixels = list(mask.colours[index]), int(inside_HW.sum())
        properties = {"part": mask.parts[index], "index": index, "colour": colour, "pixels": pixels}
        geometry = {"type": "MultiPolygon", "coordinates": polygons(inside_HW)}
        features.append({"type": "Feature", "properties": properties, "geometry": geometry})
    return _json({"type": "FeatureCollection", "image": image, "width": width, "height": height, "features": features})


def _parts_shown(mask: Mask) -> list[int]:
    """Return the indices of the parts that the mask has pixels of, background left out."""
    return [int(index) for index in np.unique(mask.array) if index]


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _is_json(content: bytes) -> bool:
    return isinstance(json.loads(content), dict)


OVERLAY = "overlay"
FORMATS: Mapping[str, Format] = {
    "palette": Format(
        ending=".png",
        encode=lambda mask, image: saved(mask.picture(), "PNG"),
        whole=lambda content: content.endswith(_PNG_END),
        meaning="PNG of part numbers, with the parts' colours",
    ),
    "index": Format(
        ending="-index.png",
        encode=lambda mask, image: saved(Image.fromarray(mask.array), "PNG"),
        whole=lambda content: content.endswith(_PNG_END),
        meaning="grey PNG of part numbers",
    ),
    "npz": Format(
        ending=".npz",
        encode=_npz,
        whole=lambda content: zipfile.is_zipfile(io.BytesIO(content)),
        meaning="numpy arrays mask, parts, colours",
    ),
    "coco": Format(
        ending="coco/.json",
        encode=_coco,
        whole=_is_json,
        meaning="coco.json: COCO annotations with run lengths, of all images",
        needs="pycocotools",
    ),
    "geojson": Format(
        ending=".geojson", encode=_geojson, whole=_is_json, meaning="GeoJSON polygons, in pixels", needs="contourpy"
    ),
    OVERLAY: Format(
        ending="-overlay.jpg",
        encode=lambda mask, image: saved(mask.overlay(), "JPEG", quality=_JPEG_QUALITY),
        whole=lambda content: content.endswith(_JPEG_END),
        meaning="JPEG of the image with its parts tinted",
    ),
}
