"""Opens what was annotated elsewhere: folders in any form that `slime optimize --data` reads, and single masks."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

from slime_studio import files
from slime_studio.errors import StudioError
from slime_studio.files import Mask
from slime_studio.pictures import encoded, take
from slime_studio.project import ID, Project


class Opening:
    """Takes annotations into a project. A folder comes file by file, each batch into a folder of its own."""

    def __init__(self, project: Project) -> None:
        self._project = project

    def take_file(self, batch: str, path: str, data: bytes) -> None:
        """Keep a file of an annotated folder, under the path that it has in it, until `read_annotations`."""
        words = PurePosixPath(path)
        climbs = words.is_absolute() or not words.parts or {"..", "."} & set(path.split("/"))
        if climbs or "\\" in path or "\0" in path or len(path) > 400 or not ID.fullmatch(batch):
            raise StudioError(f"path: got {path[:80]!r}, expected one inside the folder that was opened")
        files.write(self._project.folder / "opened" / batch / words, data)

    def read_annotations(self, batch: str) -> dict[str, Any]:
        """Add the annotated images of a folder that was sent, in any form that `slime optimize --data` reads."""
        from slime_image import ImageError
        from slime_optimize.data.annotations import read
        from slime_optimize.errors import InputError

        if not ID.fullmatch(batch):
            raise StudioError("batch: is no name")
        folder = self._project.folder / "opened" / batch
        names, by_number = [part.name for part in self._project.parts], False
        try:
            try:
                found = read(folder)
            except InputError:
                if len(names) < 2:
                    raise
                found, by_number = read(folder, names), True  # masks of numbers that nothing but the project names
        except (InputError, ImageError) as error:
            raise StudioError(str(error).replace(f"{folder}/", "").replace(str(folder), "the folder")) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        for name in found.parts[1:]:
            if name not in names:
                self._project.add_part(name)
        kept = 0
        for example in found.examples:
            made = self._project.add_image(take(encoded(example.image_HW3), example.name), example.name)
            if self._project.revision(made):  # painted here already
                kept += 1
                continue
            self._project.set_mask(made, self._project.values(example.mask_HW, found.parts))
            self._project.set_example(made, True)
        return {"images": len(found.examples), "kept": kept, "by_number": by_number, "parts": list(found.parts)}

    def open_mask(self, image: str, name: str, data: bytes) -> Mask:
        """Return the mask in a file of part numbers or known colours (PNG, TIFF, BMP, GIF, .npy) in part values."""
        from slime_optimize.data.annotations import check_ids, load_mask
        from slime_optimize.errors import InputError

        facts = self._project.image(image)
        names = [part.name for part in self._project.parts]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"mask{Path(name).suffix.lower()}"
            path.write_bytes(data)
            try:
                numbers_HW = load_mask(path, parts=names).values_HW
                check_ids(numbers_HW, names, f"mask {name}")
            except InputError as error:
                raise StudioError(str(error).replace(str(path), name)) from error
        if numbers_HW.shape != (facts["height"], facts["width"]):
            raise StudioError(
                f"mask {name}: is {numbers_HW.shape[1]}x{numbers_HW.shape[0]}, expected "
                f"{facts['width']}x{facts['height']} as the image; open the mask of this image"
            )
        return self._project.values(numbers_HW, names)
