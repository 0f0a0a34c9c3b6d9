"""A project's label config, and what it makes of masks: brush regions to show, and annotations to learn from.

    <View>
      <Image name="image" value="$image"/>
      <BrushLabels name="tag" toName="image"><Label value="wheel"/> <Label value="window"/></BrushLabels>
    </View>

Tags and labels may have any names. There may be several BrushLabels, all on one Image.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import numpy as np

from slime_studio.errors import StudioError
from slime_studio.files import Mask
from slime_studio.label_studio.brush import decode, encode

_TYPE = "brushlabels"


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What a label config says.

    Attributes:
        parts: the names to learn, background first.
        image: the Image tag's name.
        key: where a task's data has the image's address.
        controls: each part's BrushLabels tag, and its label as it is written there.
    """

    parts: tuple[str, ...]
    image: str
    key: str
    controls: Mapping[str, tuple[str, str]]

    def regions(self, mask_HW: Mask, parts: Sequence[str]) -> list[dict[str, Any]]:
        """Return a mask of numbers into `parts` as regions for Label Studio to show: one for each part that is there.

        The background gets none, nor does a part that the label config has no label for.
        """
        height, width = mask_HW.shape
        there = np.bincount(mask_HW.ravel(), minlength=len(parts))
        return [
            {
                "id": uuid.uuid4().hex[:10],
                "from_name": self.controls[part][0],
                "to_name": self.image,
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "type": _TYPE,
                "origin": "prediction",
                "value": {"format": "rle", "rle": encode(mask_HW == number), _TYPE: [self.controls[part][1]]},
            }
            for number, part in enumerate(parts)
            if number and there[number] and part in self.controls
        ]

    def mask(self, regions: Sequence[Mapping[str, Any]], height: int, width: int) -> Mask:
        """Return an annotation's mask (H,W) of numbers into `parts`; what was painted later lies on top.

        Raises StudioError for what cannot be learned from: a label that is unknown, a region that is no brush region,
        an image that was turned in Label Studio, or that has another size.
        """
        from slime_optimize.data.annotations.example import index_of, spelled
        from slime_optimize.errors import InputError

        mask_HW = np.zeros((height, width), np.uint8)
        for region in regions:
            value = region.get("value") or {}
            names = [spelled(str(name)) for name in value.get(region.get("type", "")) or []]
            if region.get("type") != _TYPE:
                if region.get("to_name") == self.image and set(names) & set(self.controls):
                    raise StudioError(f"region: is {region['type']}, expected a brush; paint it with the brush")
                continue
            if len(names) != 1:
                raise StudioError(f"region: has {len(names)} labels, expected one; give it one")
            try:
                number = index_of(names[0], self.parts, "region")
            except InputError as error:
                raise StudioError(
                    f"region: has the label {names[0]!r}, which the label config has not; add it there, or label the "
                    "region anew"
                ) from error
            size = region.get("original_width"), region.get("original_height")
            if region.get("image_rotation"):
                raise StudioError(
                    f"region: its image was turned by {region['image_rotation']} degrees, expected 0; turn it back, "
                    "and paint it anew"
                )
            if size != (width, height):
                raise StudioError(
                    f"region: is of an image of {size[0]}x{size[1]}, expected {width}x{height}, which the image has; "
                    "paint it anew"
                )
            mask_HW[decode(value.get("rle", []), height, width)] = number
        return mask_HW


def read_config(xml: str) -> Labels:
    """Return what a label config says. Raises StudioError, in one line, for one that nothing can be learned with."""
    from slime_optimize.data.annotations.example import parts_from, spelled
    from slime_optimize.errors import InputError

    if "<!" in xml.replace("<!--", ""):  # entities, which may grow without bound
        raise StudioError("label config: has a declaration (<!…>), expected tags alone; take it out")
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise StudioError(f"label config: is no XML ({error})") from error
    tags = [tag for tag in root.iter("BrushLabels") if tag.get("name") and tag.get("toName")]
    targets = sorted({str(tag.get("toName")) for tag in tags})
    if len(targets) != 1:
        raise StudioError(
            f"label config: has BrushLabels on {len(targets)} images ({', '.join(targets) or 'none'}), expected on "
            'one; add <BrushLabels name="tag" toName="image"> with a Label for each part'
        )
    image = next((tag for tag in root.iter("Image") if tag.get("name") == targets[0]), None)
    key = "" if image is None else str(image.get("value") or "")
    if not key.startswith("$") or not key[1:]:
        raise StudioError(
            f"label config: BrushLabels are on {targets[0]!r}, expected an Image of this name with one image in "
            f'value="$image"; a list of images is not segmented'
        )
    controls: dict[str, tuple[str, str]] = {}
    for tag in tags:
        for label in tag.iter("Label"):
            written = label.get("alias") or label.get("value") or ""
            if spelled(written) in controls:
                raise StudioError(f"label config: has the label {written!r} twice, expected once; rename one of them")
            controls[spelled(written)] = str(tag.get("name")), written
    try:
        parts = parts_from(controls)
    except InputError as error:
        raise StudioError(f"label config: {error}") from error
    return Labels(parts=parts, image=targets[0], key=key[1:], controls=controls)
