"""A project: a folder with images, the masks painted over them, the parts, and what was learned from them.

    project.json             parts, each with the value that it has in masks, and the backbone
    images/ID.jpg  ID.json   an image and what is known of it, which is written last: without it there is no image
    small/ID.jpg             a small picture of it
    masks/ID.png             its mask, a palette PNG of part values
    segmenters/v3/           what job 3 learned        predictions/v3/   the images as it segments them
    jobs/0003/               a job (jobs.py)           repository/       what is published, unless it is elsewhere

The value of a part in masks never changes, so that removing a part is one write: values of no part count as background.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from slime_studio import files
from slime_studio.errors import StudioError
from slime_studio.files import VOID, Mask
from slime_studio.parts import Part, check, given_colour
from slime_studio.pictures import Taken
from slime_was.options import MAX_PARTS

ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_UNTOUCHED = 254  # in a patch: this pixel stays as it is
_LAST_VALUE = 253


class Project:
    """The folder, for the threads of one studio. Raises StudioError where it is open in another, or damaged."""

    def __init__(self, folder: Path, backbone: str | None = None) -> None:
        self.folder = folder.resolve()
        self._turn = threading.RLock()
        self._numbers: dict[tuple[str, str], int] = {}  # of the last edit, by tab and image
        self._last: tuple[tuple[str, str], Mask] = (("", ""), np.zeros((0, 0), np.uint8))  # painted last, decoded
        self._lock = _locked(self.folder)
        try:
            self._open(backbone)
        except StudioError:
            self.close()
            raise

    def _open(self, backbone: str | None) -> None:
        self._facts = files.read_json(self.folder / "project.json") or {"format": 1, "next": 1, "parts": []}
        if backbone:
            self._facts["backbone"] = backbone
        self._images = {path.stem: files.read_json(path) for path in sorted((self.folder / "images").glob("*.json"))}
        if not self._facts["parts"]:
            self._facts["parts"] = [{"value": 0, "name": "background", "colour": given_colour(0)}]
        self._keep()

    def close(self) -> None:
        """Let another studio open the folder."""
        self._lock.close()

    @property
    def name(self) -> str:
        """The folder's name, as a name that segmenters can have."""
        return slug(self.folder.name)

    @property
    def backbone(self) -> str:
        """The backbone to learn with."""
        return str(self._facts.get("backbone", "embedded"))

    @property
    def parts(self) -> list[Part]:
        """The parts, background first."""
        return [Part(**each) for each in self._facts["parts"]]

    @property
    def colours(self) -> dict[int, str]:
        """Colours by value."""
        return {part.value: part.colour for part in self.parts}

    def add_part(self, name: str) -> Part:
        """Add a part of this name, in a colour of its own. Raises StudioError for a name that cannot be learned."""
        with self._turn:
            value = int(self._facts["next"])
            if value > _LAST_VALUE:
                raise StudioError(f"parts: {_LAST_VALUE} were made in this project already; begin another project")
            part = Part(value=value, name=name.strip(), colour=given_colour(len(self.parts)))
            self._set_parts([*self.parts, part], value + 1)
            return part

    def change_part(self, value: int, name: str | None = None, colour: str | None = None) -> None:
        """Give a part another name or colour. Raises StudioError for one that cannot be."""
        with self._turn:
            old = self._part(value)
            new = replace(old, name=old.name if name is None else name.strip(), colour=colour or old.colour)
            self._set_parts([new if part == old else part for part in self.parts], int(self._facts["next"]))

    def remove_part(self, value: int) -> None:
        """Take a part away: what is painted of it counts as background."""
        with self._turn:
            old = self._part(value)
            self._set_parts([part for part in self.parts if part != old], int(self._facts["next"]))

    def _part(self, value: int) -> Part:
        found = next((part for part in self.parts if part.value == value and value), None)
        if found is None:
            raise StudioError(f"parts: {value} is none of this project's; load the page again", 404)
        return found

    def _set_parts(self, parts: Sequence[Part], following: int) -> None:
        check(parts)
        before = self._facts
        self._facts = {**before, "parts": [asdict(part) for part in parts], "next": following}
        try:
            self._keep()
        except StudioError:
            self._facts = before
            raise

    def images(self) -> list[dict[str, Any]]:
        """Return what is known of each image: id, name, width, height, example, and its mask's revision."""
        with self._turn:
            return [{**facts, "id": each, "revision": self.revision(each)} for each, facts in self._images.items()]

    def image(self, name: str) -> dict[str, Any]:
        """Return what is known of one image. Raises StudioError (404) where there is none of this id."""
        found = self._images.get(name) if ID.fullmatch(name) else None
        if found is None:
            raise StudioError(f"image {name[:80]!r}: is not in this project", 404)
        return found

    def image_path(self, name: str) -> Path:
        """Return the image's file."""
        return self.folder / "images" / str(self.image(name)["file"])

    def add_image(self, taken: Taken, name: str) -> str:
        """Keep an image and return its id; that of the same picture where it is there already."""
        with self._turn:
            for each, known in self._images.items():
                if known["pixels"] == taken.digest:
                    return each
            made = _free(slug(Path(name).stem), self._images)
            file = f"{made}.{taken.ending}"
            files.write(self.folder / "small" / f"{made}.jpg", taken.small)
            files.write(self.folder / "images" / file, taken.data)
            facts = {
                "name": name[-200:],
                "file": file,
                "width": taken.width,
                "height": taken.height,
                "pixels": taken.digest,
                "example": False,
            }
            self._keep_image(made, facts)
        return made

    def remove_image(self, name: str) -> None:
        """Take an image and its mask out of the project."""
        with self._turn:
            path = self.image_path(name)
            (self.folder / "images" / f"{name}.json").unlink()  # first: without it there is no image
            del self._images[name]
            for each in (path, self.mask_path(name), self.folder / "small" / f"{name}.jpg"):
                each.unlink(missing_ok=True)

    def set_example(self, name: str, example: bool) -> None:
        """Say whether the next run learns from this image."""
        with self._turn:
            facts = {**self.image(name), "example": example}
            self._keep_image(name, facts)

    def mask_path(self, name: str) -> Path:
        """Return where the image's mask is, or would be."""
        return self.folder / "masks" / f"{name}.png"

    def revision(self, name: str) -> str:
        """Return what changes whenever the mask does; nothing where there is no mask."""
        try:
            return str(self.mask_path(name).stat().st_mtime_ns)
        except FileNotFoundError:
            return ""

    def mask(self, name: str) -> Mask:
        """Return the image's mask (H,W) of part values; all background where nothing was painted yet."""
        with self._turn:
            facts, kept = self.image(name), (name, self.revision(name))
            if self._last[0] == kept:
                return self._last[1].copy()
            found = files.read_mask(self.mask_path(name))
            return np.zeros((facts["height"], facts["width"]), np.uint8) if found is None else found

    def set_mask(self, name: str, mask_HW: Mask) -> str:
        """Keep a whole mask, of the image's size; return its revision."""
        with self._turn:
            facts = self.image(name)
            if mask_HW.shape != (facts["height"], facts["width"]):
                raise StudioError(
                    f"mask: is {mask_HW.shape[1]}x{mask_HW.shape[0]}, expected {facts['width']}x{facts['height']} as "
                    "the image; give a mask of this image"
                )
            files.write(self.mask_path(name), files.mask_png(mask_HW, self.colours))
            self._last = ((name, self.revision(name)), mask_HW.copy())
            return self._last[0][1]

    def patch(
        self, name: str, left: int, top: int, width: int, height: int, data: bytes, *, tab: str = "", number: int = 0
    ) -> str:
        """Change the pixels of a rectangle, row by row, but for those of the value 254; return the revision.

        So two tabs that paint on one image each keep what the other painted. A tab numbers its edits: one that comes
        after a later one, which has it all, is left out, as is one that comes twice. Raises StudioError for a rectangle
        that is not on the image, and for values of no part.
        """
        with self._turn:
            facts = self.image(name)
            if number and number <= self._numbers.get((tab, name), 0):
                return self.revision(name)
            inside = 0 <= left < left + width <= facts["width"] and 0 <= top < top + height <= facts["height"]
            if not inside or len(data) != width * height:
                raise StudioError(
                    f"patch: got {len(data)} bytes for {width}x{height} at ({left}, {top}), expected a rectangle "
                    f"on the image of {facts['width']}x{facts['height']} and a byte for each of its pixels"
                )
            patch_hw = np.frombuffer(data, np.uint8).reshape(height, width)
            known = (patch_hw < int(self._facts["next"])) | (patch_hw >= _UNTOUCHED)  # parts that were removed too
            if not known.all():
                raise StudioError("patch: has values of no part; load the page again", 409)
            mask_HW = self.mask(name)
            place = mask_HW[top : top + height, left : left + width]
            np.copyto(place, patch_hw, where=patch_hw != _UNTOUCHED)
            revision = self.set_mask(name, mask_HW)
            if number:
                self._numbers[(tab, name)] = number
            return revision

    def numbers(self, mask_HW: Mask) -> Mask:
        """Return a mask of part values as numbers by the parts' order, as segmenters have them; void stays void."""
        table_V = np.zeros(256, np.uint8)
        table_V[VOID] = VOID
        for number, part in enumerate(self.parts):
            table_V[part.value] = number
        return table_V[mask_HW]

    def values(self, numbers_HW: Mask, names: Sequence[str]) -> Mask:
        """Return a mask of numbers into `names` as part values; names that are no part any more become background."""
        by_name = {part.name: part.value for part in self.parts}
        table_V = np.zeros(256, np.uint8)
        table_V[VOID] = VOID
        for number, name in enumerate(names):
            table_V[number] = by_name.get(name, 0)
        return table_V[numbers_HW]

    def examples(self) -> dict[str, Mask]:
        """Return the masks of the images to learn from, as numbers. Raises StudioError where none can be learned."""
        parts = self.parts
        if len(parts) < 2:
            raise StudioError("learn: there is no part yet, expected one besides the background; add it and paint it")
        masks = {each["id"]: self.numbers(self.mask(each["id"])) for each in self.images() if each["example"]}
        shown = {each: np.unique(mask_HW) for each, mask_HW in masks.items()}
        masks = {each: masks[each] for each, numbers in shown.items() if ((numbers > 0) & (numbers < MAX_PARTS)).any()}
        if not masks:
            raise StudioError('learn: no image is painted and marked "Learn from this image", expected one or more')
        there = set(np.concatenate([shown[each] for each in masks]).tolist())
        missing = [part.name for number, part in enumerate(parts) if number and number not in there]
        if missing:
            raise StudioError(
                f"learn: {', '.join(missing)} is painted in no image to learn from; paint it, or remove the part"
            )
        return masks

    def _keep(self) -> None:
        files.write_json(self.folder / "project.json", self._facts)

    def _keep_image(self, name: str, facts: dict[str, Any]) -> None:
        files.write_json(self.folder / "images" / f"{name}.json", facts)
        self._images[name] = facts


def slug(name: str) -> str:
    """Return a name of small letters, digits, - and _, which begins with a letter or a digit."""
    made = re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-_")[:48]
    return made or "image"


def copied(source: Path, target: Path) -> None:
    """Put the same file at `target`, as a link where the disk can do that."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def _free(name: str, taken: Mapping[str, Any]) -> str:
    number, made = 1, name
    while made in taken:
        number += 1
        made = f"{name}-{number}"
    return made


def _locked(folder: Path) -> IO[str]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise StudioError(f"project {folder}: cannot be used ({error.strerror}); give another folder") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise StudioError(
            f"project {folder}: is open in another studio; close that one, or give another folder"
        ) from error
    return lock
