"""What Label Studio and CVAT export, laid out as they do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from annotating import COLOURS, refused, save, write
from painting import PARTS, paint
from slime_optimize.data.annotations import read

IMAGE, MASK = paint()
LABELMAP = "# label:color_rgb:parts:actions\ngreen:20,180,40::\nbackground:0,0,0::\nred:200,30,30::\n"


@pytest.fixture
def cvat(tmp_path: Path) -> Path:
    """CVAT's Segmentation mask 1.1, saved with images, of which one was not annotated."""
    for name in ("car", "truck", "empty"):
        save(IMAGE, tmp_path / "JPEGImages" / f"{name}.jpg")
    for name in ("car", "truck"):
        save(COLOURS[MASK], tmp_path / "SegmentationClass" / f"{name}.png")
        save(COLOURS[MASK], tmp_path / "SegmentationObject" / f"{name}.png")
    write("car\ntruck\n", tmp_path / "ImageSets" / "Segmentation" / "default.txt")
    write(LABELMAP, tmp_path / "labelmap.txt")
    return tmp_path


def test_cvat_segmentation_mask(cvat: Path) -> None:
    annotated = read(cvat)
    assert annotated.parts == ("background", "green", "red")
    assert [example.name for example in annotated.examples] == ["car", "truck"]
    (first, _) = read(cvat, PARTS).examples
    assert np.array_equal(first.mask_HW, MASK)


def test_cvat_without_images_or_labelmap(cvat: Path) -> None:
    (cvat / "labelmap.txt").unlink()
    refused(lambda: read(cvat, PARTS), "PNG of mode RGB", "--legend")
    write(LABELMAP.replace("red:200", "red:201"), cvat / "labelmap.txt")
    refused(lambda: read(cvat), "does not name: #c81e1e")
    for path in (cvat / "JPEGImages").iterdir():
        path.unlink()
    refused(lambda: read(cvat), "there is no image for it")


def test_cvat_xml_is_refused(tmp_path: Path) -> None:
    save(IMAGE, tmp_path / "car.jpg")
    write("<annotation/>", tmp_path / "car.xml")
    refused(lambda: read(tmp_path), "car.xml: is XML", '"COCO 1.0" or "Segmentation mask 1.1"')


def strokes(folder: Path, task: int, annotation: int = 5) -> None:
    """Two strokes for red, one for green, as Label Studio names them."""
    upper = MASK == 1
    upper[30:] = False
    parts = {"red-0": upper, "red-1": (MASK == 1) & ~upper, "green-0": MASK == 2}
    for name, painted in parts.items():
        path = folder / f"task-{task}-annotation-{annotation}-by-me@here.org-tag-{name}.png"
        save(painted.astype(np.uint8) * np.uint8(255), path)


def test_brush_of_one_task_and_one_image(tmp_path: Path) -> None:
    strokes(tmp_path, 3)
    save(IMAGE, tmp_path / "car.png")
    annotated = read(tmp_path)
    assert annotated.parts == ("background", "green", "red")
    assert np.array_equal(annotated.examples[0].mask_HW, np.array([0, 2, 1])[MASK])
    (example,) = read(tmp_path, PARTS).examples
    assert np.array_equal(example.mask_HW, MASK) and example.name == "car"


LONG = [
    {"id": 3, "data": {"image": "/data/upload/1/1a2b3c4d-car.jpg"}, "annotations": []},
    {"id": 4, "data": {"note": "hello", "photo": "/data/upload/1/0a2b3c4d-truck.jpg"}},
    {"id": 9, "data": {"image": "/data/upload/1/never-annotated.jpg"}},
]
SHORT = [{"id": 3, "image": "/data/upload/1/1a2b3c4d-car.jpg"}, {"id": 4, "image": "/data/local-files/?d=x/truck.jpg"}]


@pytest.mark.parametrize("tasks", [LONG, SHORT])
def test_brush_with_the_projects_json(tmp_path: Path, tasks: list[object]) -> None:
    for task, name in ((3, "car.jpg"), (4, "0a2b3c4d-truck.jpg")):
        strokes(tmp_path, task)
        save(IMAGE, tmp_path / name)
    if tasks is SHORT:
        (tmp_path / "0a2b3c4d-truck.jpg").rename(tmp_path / "truck.jpg")
    write(tasks, tmp_path / "project-1-at-2026-01-01.json")
    examples = read(tmp_path, PARTS).examples
    assert len(examples) == 2 and all(np.array_equal(example.mask_HW, MASK) for example in examples)


def test_brush_of_which_image_is_not_known(tmp_path: Path) -> None:
    strokes(tmp_path, 3)
    strokes(tmp_path, 4)
    save(IMAGE, tmp_path / "car.jpg")
    refused(lambda: read(tmp_path), "which image task 3 was of", "JSON export", "Brush labels to COCO")


def test_brush_of_two_people(tmp_path: Path) -> None:
    strokes(tmp_path, 3)
    strokes(tmp_path, 3, annotation=6)
    save(IMAGE, tmp_path / "car.jpg")
    refused(lambda: read(tmp_path), "task 3 has the annotations 5, 6, expected one")


def test_brush_labels_with_hyphens(tmp_path: Path) -> None:
    save(IMAGE, tmp_path / "car.jpg")
    save((MASK > 0).astype(np.uint8) * np.uint8(255), tmp_path / "task-3-annotation-5-by--part-tag-rear-lamp-0.png")
    annotated = read(tmp_path, ["background", "lamp", "rear-lamp"])
    assert np.array_equal(annotated.examples[0].mask_HW, (MASK > 0) * 2)
    refused(lambda: read(tmp_path, ["background", "wheel"]), "has the name 'tag-rear-lamp'")


def test_label_studios_own_json_is_refused(tmp_path: Path) -> None:
    save(IMAGE, tmp_path / "car.jpg")
    write(LONG, tmp_path / "project.json")
    refused(lambda: read(tmp_path), "Label Studio's own JSON", "COCO with Images", "Brush labels to PNG")
    refused(lambda: read(tmp_path / "project.json"), "Label Studio's own JSON")
