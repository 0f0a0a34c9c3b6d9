"""The reader of annotated images: it recognises what a source is by its content, and reads it.

a folder    images with masks · COCO JSON (also in annotations/) · LabelMe JSON · YOLO labels · Label Studio's brushes
a file      COCO JSON · one LabelMe JSON · YOLO's data.yaml, for its folder
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from slime_optimize.data.annotations.coco import is_coco, read_coco
from slime_optimize.data.annotations.example import Annotated, check_parts, tell_remarks
from slime_optimize.data.annotations.folders import read_folder
from slime_optimize.data.annotations.label_studio import is_tasks, read_brush, strokes
from slime_optimize.data.annotations.labelme import is_labelme, read_labelme
from slime_optimize.data.annotations.legend import load_legend
from slime_optimize.data.annotations.locating import JSON_FOLDERS, Locator
from slime_optimize.data.annotations.matching import files, places
from slime_optimize.data.annotations.yolo import YAML, labels, read_yolo
from slime_optimize.errors import InputError, first_line, tell

WANTED = "expected a folder of images with masks, COCO or LabelMe JSON, or YOLO labels; docs/annotations.md shows each"
_OURS = ("parts.json", "legend.json")


def read(source: Path, parts: Sequence[str] | None = None, *, legend: Path | None = None) -> Annotated:
    """Load the images and masks of a folder or file, and the part names: `parts`, or the source's own.

    `legend` says what the colours of masks mean. Raises InputError or slime_image's ImageError, in one line.
    """
    source = Path(source)
    names = None if parts is None else check_parts(parts)
    if not source.exists():
        raise InputError(f"data {source}: no such file or folder, {WANTED}")
    if source.suffix.lower() in YAML and source.is_file():
        source = source.parent
    documents = _documents(source)
    if legend is not None and (documents or source.is_file()):
        raise InputError(f"legend {legend}: is for masks of colours, but {source} names its parts itself; leave it out")
    found = read_folder(source, names, load_legend(legend)) if legend else _annotated(source, documents, names)
    tell_remarks(found.examples, f"data {source}")
    return found


def _annotated(source: Path, documents: dict[Path, Any], parts: Sequence[str] | None) -> Annotated:
    folder = source if source.is_dir() else source.parent
    kind = _one_kind(source, documents)
    if kind in ("COCO", "LabelMe") and source.is_dir():
        _check_alone(source, kind)
    if kind == "COCO":
        return _coco(documents, folder, parts)
    if kind == "LabelMe":
        return read_labelme(documents, folder, parts)
    brush = strokes(source) if source.is_dir() else []
    if brush:
        return read_brush(brush, folder, [task for tasks in documents.values() for task in tasks], parts)
    if kind is not None:
        raise InputError(
            f'data {source}: is Label Studio\'s own JSON; choose the export "COCO with Images" for polygons, '
            'or "Brush labels to COCO" or "Brush labels to PNG" for brushes'
        )
    if yolo := _labels(source):
        return read_yolo(yolo, source, parts)
    _check_readable(source)
    return read_folder(source, parts, None)


def _documents(source: Path) -> dict[Path, Any]:
    """Return the JSON files that are annotations, by path. Other JSON files may lie beside masks, but not alone."""
    if source.is_file():
        paths = [source] if source.suffix.lower() == ".json" else []
    else:
        folders = [source, *(source / name for name in JSON_FOLDERS if (source / name).is_dir())]
        paths = [path for folder in folders for path in files(folder, (".json",)) if path.name not in _OURS]
    contents = {path: _json(path) for path in paths}
    known = {path: content for path, content in contents.items() if _kind(content)}
    if paths and not known and (source.is_file() or (_masks_below(source) is None and not _labels(source))):
        raise InputError(
            f"data {paths[0]}: is neither COCO (images, annotations, categories) nor LabelMe (shapes); "
            "export one of the two, or move the file away"
        )
    return known


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"data {path}: cannot be read as JSON ({first_line(error)}); export it again") from error


def _kind(content: object) -> str | None:
    if is_coco(content):
        return "COCO"
    if is_labelme(content):
        return "LabelMe"
    return "Label Studio" if is_tasks(content) else None


def _one_kind(source: Path, documents: dict[Path, Any]) -> str | None:
    """Return what all the JSON files are, None without any; InputError where they differ."""
    first: dict[str | None, Path] = {}
    for path, content in documents.items():
        first.setdefault(_kind(content), path)
    if len(first) > 1:
        kinds = " and ".join(f"{kind} ({path.name})" for kind, path in first.items())
        raise InputError(f"data {source}: mixes {kinds}, expected one kind; name one file, or keep them in two folders")
    return next(iter(first), None)


def _coco(documents: dict[Path, Any], folder: Path, parts: Sequence[str] | None) -> Annotated:
    """Load one COCO file, or several with the same categories."""
    first: tuple[Path, list[Any]] | None = None
    read_all: list[Annotated] = []
    used = _with_regions(documents)
    names = _values(documents, "images", "file_name")
    shared = Locator(folders=(folder,), names=[str(name) for name in names], once=True)
    drawn = _values(used, "annotations", "category_id")
    for path, content in used.items():
        categories = sorted((str(one.get("id")), str(one.get("name"))) for one in content["categories"])
        first = first or (path, categories)
        if first[1] != categories:
            raise InputError(
                f"data {folder}: {first[0].name} and {path.name} have categories that differ, expected the same; "
                "name one of the files"
            )
        places = (folder, path.parent, path.parent.parent)
        locator = replace(shared, folders=places, subset=path.stem.partition("_")[2])
        read_all.append(read_coco(path, content, locator, parts, drawn))
    return Annotated(parts=read_all[0].parts, examples=tuple(one for part in read_all for one in part.examples))


def _values(documents: dict[Path, Any], entries: str, key: str) -> list[Any]:
    """Return what the entries that have a key say there; those that are none are refused where they are read."""
    lists = (content[entries] for content in documents.values() if isinstance(content[entries], list))
    return [one[key] for each in lists for one in each if isinstance(one, dict) and key in one]


def _with_regions(documents: dict[Path, Any]) -> dict[Path, Any]:
    """Return the files that outline anything; others, of key points or without annotations, may lie beside them."""
    used = {
        path: content
        for path, content in documents.items()
        if content["annotations"] and not _values({path: content}, "categories", "keypoints")
    }
    if not used:
        return documents
    for path in sorted(documents.keys() - used.keys()):
        tell(f"data {path}: has key points or no annotation; left out")
    return used


def _check_alone(source: Path, kind: str) -> None:
    masks = _masks_below(source)
    if masks is not None:
        raise InputError(
            f"data {source}: mixes {kind} JSON and the masks of {masks}, expected one kind; "
            "keep them in folders of their own"
        )


def _labels(source: Path) -> dict[Path, Path]:
    """Return YOLO's label files by image, where there are no masks besides."""
    return labels(source) if source.is_dir() and _masks_below(source) is None else {}


def _masks_below(source: Path) -> Path | None:
    where = places(source)
    return where[1] if where is not None and where[1] not in (source, where[0]) else None


def _check_readable(source: Path) -> None:
    """Raise InputError, with what to do, for exports that are similar but cannot be read."""
    if source.is_file():
        hint = "unpack it first" if source.suffix.lower() == ".zip" else WANTED
        raise InputError(f"data {source}: is a {source.suffix or 'nameless'} file; {hint}")
    xml = files(source, (".xml",))
    if xml:
        raise InputError(
            f'data {xml[0]}: is XML (CVAT\'s own, its "LabelMe 3.0", or Pascal VOC), which is not read; '
            'export "COCO 1.0" or "Segmentation mask 1.1" from CVAT'
        )
