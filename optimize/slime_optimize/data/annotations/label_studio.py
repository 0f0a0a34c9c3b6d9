"""Label Studio's "Brush labels to PNG" and "to NumPy": a black and white file for each stroke, named after its task.

    task-3-annotation-7-by-1-tag-wheel-0.png      task, annotation, person, the control tag's name, label, number

The names do not say which image a task belongs to. The project's JSON export (JSON or JSON-MIN) does, and is read where
it lies beside the masks; with only one task and one image it is not needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from slime_optimize.data.annotations.example import Annotated, check_parts, parts_from
from slime_optimize.data.annotations.folders import MASK_SUFFIXES, files
from slime_optimize.data.annotations.locating import Locator, spellings
from slime_optimize.data.annotations.masks import load_layers
from slime_optimize.data.annotations.pictures import IMAGE_SUFFIXES
from slime_optimize.errors import InputError

_NAME = re.compile(r"task-(?P<task>\d+)-annotation-(?P<annotation>\d+)-by-[^-]*-(?P<tag>[^-]+)-(?P<label>.+)-\d+")


@dataclass(frozen=True, kw_only=True)
class Stroke:
    """A file; `rest` is the tag's name and the label, which cannot be told apart where the tag's name has a hyphen."""

    path: Path
    task: int
    annotation: int
    rest: str
    label: str

    def name(self, parts: Sequence[str] | None) -> str:
        """Return the longest of the parts that the file's name ends with; else what follows the tag's name."""
        ends = [part for part in parts or () if self.rest.endswith(f"-{part}")]
        return max(ends, key=len, default=self.label)


def strokes(folder: Path) -> list[Stroke]:
    """Return the brush files of a folder."""
    found: list[Stroke] = []
    for path in files(folder, MASK_SUFFIXES):
        name = _NAME.fullmatch(path.stem)
        if name is not None:
            task, annotation = int(name["task"]), int(name["annotation"])
            rest = f"{name['tag']}-{name['label']}"
            found.append(Stroke(path=path, task=task, annotation=annotation, rest=rest, label=name["label"]))
    return found


def is_tasks(content: object) -> bool:
    """Return whether a JSON document is Label Studio's JSON or JSON-MIN."""
    return isinstance(content, list) and bool(content) and all(isinstance(one, dict) and "id" in one for one in content)


def read_brush(
    found: Sequence[Stroke], folder: Path, tasks: Iterable[Mapping[str, Any]], parts: Sequence[str] | None
) -> Annotated:
    """Load one example for each task; InputError where its image is not known, or it has two annotations."""
    names = check_parts(parts) if parts is not None else parts_from(sorted({stroke.label for stroke in found}))
    pictures = {int(task["id"]): _image_of(task) for task in tasks}
    locator = Locator(folders=(folder,), names=[name for name in pictures.values() if name is not None])
    examples = []
    for task in sorted({stroke.task for stroke in found}):
        mine = [stroke for stroke in found if stroke.task == task]
        annotations = sorted({stroke.annotation for stroke in mine})
        if len(annotations) > 1:
            raise InputError(
                f"data {folder}: task {task} has the annotations {', '.join(map(str, annotations))}, "
                "expected one; keep the files of one"
            )
        image = _find(task, pictures, folder, locator, alone=len({stroke.task for stroke in found}) == 1)
        examples.append(load_layers(image, [(stroke.name(names), stroke.path) for stroke in mine], names))
    return Annotated(parts=names, examples=tuple(examples))


def _image_of(task: Mapping[str, Any]) -> str | None:
    data = task.get("data")
    values = (data if isinstance(data, dict) else task).values()
    names = (value for value in values if isinstance(value, str))
    return next((name for name in names if PurePosixPath(spellings(name)[0]).suffix.lower() in IMAGE_SUFFIXES), None)


def _find(task: int, pictures: Mapping[int, str | None], folder: Path, locator: Locator, *, alone: bool) -> Path:
    name = pictures.get(task)
    if name is not None:
        return locator.find(name, f"task {task} of {folder}")
    images = [path for path in files(folder, IMAGE_SUFFIXES) if _NAME.fullmatch(path.stem) is None]
    if alone and len(images) == 1:
        return images[0]
    raise InputError(
        f"data {folder}: its brush masks do not say which image task {task} was of; put the project's JSON export "
        'beside them, or choose the export "Brush labels to COCO"'
    )
