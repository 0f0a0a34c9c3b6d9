"""The files a mask can become, and whether a file that is there is whole. COCO and GeoJSON need the extra `formats`.

Letters in names: H, W pixels of the image as seen, K parts.
"""

import contextlib
import importlib.util
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from slime_client import coco, polygons
from slime_client.errors import FAILED_PRECONDITION, SegmenterError
from slime_client.files import write_file
from slime_client.mask import Mask

_JPEG_QUALITY = 90
_PNG_END = b"IEND\xaeB`\x82"
_JPEG_END = b"\xff\xd9"


@dataclass(frozen=True, kw_only=True)
class Format:
    """A kind of result.

    Attributes:
        ending: what follows the image's stem in the file's name; with a folder before it, where it has one.
        encode: the file's content, from a mask and the name of its image.
        whole: whether a file's content is such a file, to its end.
        meaning: what is in it, for people.
        needs: a package of the extra `formats`.
    """

    ending: str
    encode: Callable[[Mask, str], bytes]
    whole: Callable[[bytes], bool]
    meaning: str
    needs: str = ""

    def check(self) -> None:
        """Whether it can be made here.

        Raises:
            SegmenterError: FAILED_PRECONDITION where its package is missing.
        """
        if self.needs and importlib.util.find_spec(self.needs) is None:
            message = f"{self.meaning}: {self.needs} is missing; pip install 'slime-serve[formats]'"
            raise SegmenterError(message, FAILED_PRECONDITION)

    def path(self, folder: Path, stem: str) -> Path:
        """Where it goes."""
        subfolder, _, ending = self.ending.rpartition("/")
        return folder / subfolder / f"{stem}{ending}"

    def write(self, path: Path, mask: Mask, image: str) -> None:
        """Write it, whole or not at all.

        Raises:
            SegmenterError: INVALID_ARGUMENT when the folder cannot be written; FAILED_PRECONDITION as `check`.
        """
        self.check()
        content = self.encode(mask, image)
        with contextlib.suppress(OSError):  # What is wrong is said by who writes there.
            path.parent.mkdir(exist_ok=True)
        write_file(path, content)

    def is_whole(self, path: Path) -> bool:
        """Whether it is there, to its end."""
        try:
            return self.whole(path.read_bytes())
        except (OSError, ValueError):
            return False


def _palette(mask: Mask, image: str) -> bytes:
    return _saved(mask.picture(), "PNG")


def _index(mask: Mask, image: str) -> bytes:
    return _saved(Image.fromarray(mask.array), "PNG")


def _overlay(mask: Mask, image: str) -> bytes:
    return _saved(mask.overlay(), "JPEG", quality=_JPEG_QUALITY)


def _npz(mask: Mask, image: str) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, mask=mask.array, parts=np.array(mask.parts), colours=np.array(mask.colours, np.uint8))
    return buffer.getvalue()


def _saved(picture: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


def _is_zip(content: bytes) -> bool:
    return zipfile.is_zipfile(io.BytesIO(content))


def _is_json(content: bytes) -> bool:
    return isinstance(json.loads(content), dict)


OVERLAY = "overlay"
FORMATS: Mapping[str, Format] = {
    "palette": Format(
        ending=".png",
        encode=_palette,
        whole=lambda content: content.endswith(_PNG_END),
        meaning="PNG of part numbers, with the parts' colours",
    ),
    "index": Format(
        ending="-index.png",
        encode=_index,
        whole=lambda content: content.endswith(_PNG_END),
        meaning="grey PNG of part numbers",
    ),
    "npz": Format(ending=".npz", encode=_npz, whole=_is_zip, meaning="numpy arrays mask, parts, colours"),
    "coco": Format(
        ending="coco/.json",
        encode=coco.encoded,
        whole=_is_json,
        meaning="coco.json: COCO annotations with run lengths, of all images",
        needs="pycocotools",
    ),
    "geojson": Format(
        ending=".geojson",
        encode=polygons.encoded,
        whole=_is_json,
        meaning="GeoJSON polygons, in pixels",
        needs="contourpy",
    ),
    OVERLAY: Format(
        ending="-overlay.jpg",
        encode=_overlay,
        whole=lambda content: content.endswith(_JPEG_END),
        meaning="JPEG of the image with its parts tinted",
    ),
}
