"""Label Studio's "Brush labels to PNG" and "to NumPy": a black and white file for each stroke, named after its task.

    task-3-annotation-7-by-1-tag-wheel-0.png      task, annotation, person, the control tag's name, label, number

The names do not say which image a task belongs to. The project's JSON export (JSON or JSON-MIN) does, and is read where
it lies beside the masks; with only one task and one image it is not needed. Person, tag and label may all have hyphens:
the labels of that export or those asked for say where a label begins; without either it must be plain from the name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from slime_optimize.data.annotations.example import Annotated, check_parts, parts_from, spelled
from slime_optimize.data.annotations.layers import load_layers
from slime_optimize.data.annotations.locating import Locator, spellings
from slime_optimize.data.annotations.matching import MASK_SUFFIXES, files
from slime_optimize.data.annotations.pictures import IMAGE_SUFFIXES
from slime_optimize.errors import InputError

_NAME = re.compile(r"task-(?P<task>\d+)-annotation-(?P<annotation>\d+)-by-(?P<rest>.*-.+-.+)-\d+")


@dataclass(frozen=True, kw_only=True)
class Stroke:
    """A file; `rest` is person, tag and label, which hyphens separate, and which may have hyphens themselves."""

    path: Path
    task: int
    annotation: int
    rest: str

    def label(self, known: Iterable[str]) -> str:
        """Return the longest of the known labels that the file's name ends with; else what follows the tag's name.

        Raises InputError where that is not plain: a person is a number, an e-mail address or a word without a hyphen.
        """
        ends = [label for label in known if self.rest.endswith(f"-{label}")]
        if ends:
            return max(ends, key=len)
        words = self.rest.split("-")
        at = next((index for index, word in enumerate(words) if "@" in word), None)
        if at is not None:
            last = max((i for i, word in enumerate(words[:-2]) if i >= at and "." in word.split("@")[-1]), default=at)
        elif words[0].isdigit() or not words[0] or len(words) == 3:
            last = 0
        else:
            raise InputError(
                f"mask {self.path}: its name does not say where the label begins in {self.rest!r}; "
                "put the project's JSON export beside it, or name the labels with --parts"
            )
        return "-".join(words[last + 2 :])


def strokes(folder: Path) -> list[Stroke]:
    """Return the brush files of a folder."""
    found: list[Stroke] = []
    for path in files(folder, MASK_SUFFIXES):
        name = _NAME.fullmatch(path.stem)
        if name is not None:
            task, annotation = int(name["task"]), int(name["annotation"])
            found.append(Stroke(path=path, task=task, annotation=annotation, rest=spelled(name["rest"])))
    return found


def is_tasks(content: object) -> bool:
    """Return whether a JSON document is Label Studio's JSON or JSON-MIN."""
    return isinstance(content, list) and bool(content) and all(isinstance(one, dict) and "id" in one for one in content)


def read_brush(
    found: Sequence[Stroke], folder: Path, tasks: Iterable[Mapping[str, Any]], parts: Sequence[str] | None
) -> Annotated:
    """Load one example for each task; InputError where its image is not known, or it has two annotations."""
    tasks = list(tasks)
    known = _labels(tasks) or parts or ()
    labels = {stroke.path: stroke.label(known) for stroke in found}
    names = check_parts(parts) if parts is not None else parts_from(sorted(set(labels.values())))
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
        layers = [(labels[stroke.path], stroke.path) for stroke in mine]
        examples.append(load_layers(image, layers, names, larger_first=parts is None))
    return Annotated(parts=names, examples=tuple(examples))


def _labels(content: object) -> set[str]:
    """Return the labels of all brush strokes in a project's JSON."""
    if isinstance(content, Mapping):
        given = content.get("brushlabels")
        own = {spelled(label) for label in given if isinstance(label, str)} if isinstance(given, list) else set()
        return own.union(*(_labels(value) for value in content.values()))
    if isinstance(content, list):
        return set().union(*(_labels(value) for value in content if isinstance(value, (Mapping, list))))
    return set()


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
