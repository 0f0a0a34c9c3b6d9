"""YOLO labels with outlines: for each image a text file with a line for each polygon, its class and its points.

    DIR/images/…/NAME.jpg, DIR/labels/…/NAME.txt      or NAME.jpg and NAME.txt side by side
    0 0.1 0.1 0.8 0.1 0.8 0.7                         class, and x and y of every point as shares of the image's sides

The classes' names are in a .yaml, as Ultralytics and Roboflow write it, or one a line in classes.txt, obj.names or
_darknet.labels. Polygons are painted from large to small. Images without labels are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import yaml

from slime_optimize.data.annotations.example import Annotated, Example, NoAreaError, index_of, spelled, tell_left_out
from slime_optimize.data.annotations.matching import files
from slime_optimize.data.annotations.pictures import IMAGE_SUFFIXES, read_picture
from slime_optimize.data.annotations.regions import Region, drawn_parts, example_of, region_of
from slime_optimize.errors import InputError, first_line, tell

YAML = (".yaml", ".yml")
_LISTS = ("classes.txt", "obj.names", "_darknet.labels")
_LINE = re.compile(r"\s*\d+(\s+-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?){4,}\s*")
_SLACK = 0.01  # how far outside the image tools place points at its edge, in shares of its sides


def labels(folder: Path) -> dict[Path, Path]:
    """Return the label files below a folder by image; those that have lines of labels, whatever else is there.

    Raises InputError for one whose image is not there, or not one alone.
    """
    found: dict[Path, Path] = {}
    images_in = cache(_images_by_name)  # each folder is listed once, however many labels it has
    for path in sorted(folder.rglob("*.txt")):
        lines = _numbered(path)
        if not lines or not _LINE.fullmatch(lines[0][1]):
            continue
        steps = path.relative_to(folder).parts[:-1]
        places = [path.parent]
        if "labels" in steps:  # the last of them, as Ultralytics looks for the images
            at = len(steps) - 1 - steps[::-1].index("labels")
            places = [folder.joinpath(*steps[:at], "images", *steps[at + 1 :]), path.parent]
        images = [image for place in places for image in images_in(place).get(spelled(path.stem), ())]
        if len(images) != 1:
            raise InputError(f"YOLO {path}: has {len(images)} images of its name in {places[0]}, expected one")
        found[images[0]] = path
    return found


def read_yolo(found: Mapping[Path, Path], folder: Path, parts: Sequence[str] | None) -> Annotated:
    """Load the images with their labels; InputError in one line for what cannot be used."""
    classes = _classes(folder)
    rows = {image: [_row(line, classes, path, n) for n, line in _numbered(path)] for image, path in found.items()}
    drawn = {name for each in rows.values() for name, _, _ in each}
    names = tuple(parts) if parts is not None else drawn_parts(classes, drawn, f"YOLO {folder}")
    places = {image.parent for image in found}
    unlabelled = sum(len(files(place, IMAGE_SUFFIXES)) for place in places) - len(found)
    if unlabelled > 0:
        tell(f"YOLO {folder}: {unlabelled} images without labels are left out")
    examples = tuple(_example(image, rows[image], names, found[image]) for image in sorted(found))
    return Annotated(parts=names, examples=examples)


def _images_by_name(folder: Path) -> dict[str, list[Path]]:
    """Return the images in a folder by their names without suffix; none where there is no such folder."""
    found: dict[str, list[Path]] = {}
    for path in files(folder, IMAGE_SUFFIXES) if folder.is_dir() else ():
        found.setdefault(spelled(path.stem), []).append(path)
    return found


Row = tuple[str, list[float], str]  # the class's name, the numbers after it, and where it stands, for messages


def _example(image: Path, rows: Sequence[Row], parts: Sequence[str], path: Path) -> Example:
    picture = read_picture(image)
    height, width = picture.shape
    layers: list[tuple[int, Region]] = []
    without: list[NoAreaError] = []
    for name, numbers, subject in rows:
        index = index_of(name, parts, subject)
        outline = [number * (height if odd % 2 else width) for odd, number in enumerate(numbers)]
        try:
            layers.append((index, region_of([outline] if len(outline) > 5 else None, picture.shape, subject)))
        except NoAreaError as error:
            without.append(error)
    tell_left_out(without, layers)
    return example_of(layers, picture, image, f"YOLO {path}")


def _numbered(path: Path) -> list[tuple[int, str]]:
    return [(number, line) for number, line in enumerate(_lines(path), 1) if line.strip()]


def _row(line: str, classes: Sequence[str], path: Path, number: int) -> Row:
    subject = f"YOLO {path}: line {number}"
    if not _LINE.fullmatch(line):
        raise InputError(f"{subject}: is {line.strip()[:60]!r}, expected a class and x y of three points or more")
    key, *values = line.split()
    numbers = [float(value) for value in values]
    if len(numbers) % 2 and len(numbers) > 5:  # 5: a box and how sure the network was of it
        raise InputError(f"{subject}: has {len(numbers)} numbers after its class, expected x and y of each point")
    beyond = [value for value in numbers if not -_SLACK <= value <= 1 + _SLACK]
    if beyond:
        raise InputError(f"{subject}: has the number {beyond[0]:g}, expected shares of the image's sides, 0 to 1")
    if int(key) >= len(classes):
        raise InputError(f"{subject}: has the class {key}, expected one of {len(classes)}: {', '.join(classes)}")
    return classes[int(key)], numbers, subject


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError):  # other text than labels
        return []


def _classes(folder: Path) -> list[str]:
    """Return the names of the classes by number, of the file in the folder, in labels/, or in the folder above."""
    for place in (folder, folder / "labels", folder.parent):
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            names = _of_yaml(path) if path.suffix.lower() in YAML else _lines(path) if path.name in _LISTS else None
            if names:
                return [spelled(name) for name in names if name.strip()]
    raise InputError(
        f"YOLO {folder}: nothing names its classes, expected data.yaml with names, or classes.txt with a name a line, "
        "in the order of their numbers; write one"
    )


def _of_yaml(path: Path) -> list[str] | None:
    """Return the names in a .yaml by number; None where it has none."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
        names = content.get("names") if isinstance(content, dict) else None
        if not names:
            return None
        listed = [str(name) for name in (names if isinstance(names, list) else [names[i] for i in range(len(names))])]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise InputError(f"YOLO {path}: cannot be read ({first_line(error)}); expected names by number") from error
    if "kpt_shape" in content:
        raise InputError(f"YOLO {path}: is of key points, which have no outline; export the outlines (segmentation)")
    return listed
