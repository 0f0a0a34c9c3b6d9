"""LabelMe JSON: its shapes against pixels painted by hand, where its picture comes from, and every mistake's line."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from annotating import ORIENTATION, Bytes, refused, save, write
from painting import PARTS, paint
from slime_optimize.data.annotations import read

IMAGE, MASK = paint()
# The outlines LabelMe draws run through the middle of the outermost pixels.
RED = [[10, 10], [39, 10], [39, 49], [10, 49]]
GREEN = [[50, 30], [79, 30], [79, 59], [50, 59]]


def png(array: Bytes, **options: Any) -> str:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", **options)
    return base64.b64encode(buffer.getvalue()).decode()


def shape(label: str, points: object, kind: str | None = "polygon", **more: object) -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}, **more}


def labelme(*shapes: dict[str, Any], **more: object) -> dict[str, Any]:
    return {
        "version": "5.4.1",
        "flags": {},
        "shapes": list(shapes),
        "imagePath": "car.jpg",
        "imageData": None,
        "imageHeight": 70,
        "imageWidth": 90,
    } | more


def placed(folder: Path, content: object, name: str = "car.json") -> Path:
    save(IMAGE, folder / "car.jpg")
    return write(content, folder / name)


def mask_of(path: Path) -> Bytes:
    (example,) = read(path, PARTS).examples
    return example.mask_HW


def test_polygons(tmp_path: Path) -> None:
    path = placed(tmp_path, labelme(shape("red", RED), shape("green", GREEN, None)))
    for source in (path, tmp_path):
        (example,) = read(source, PARTS).examples
        assert np.array_equal(example.mask_HW, MASK) and example.name == "car" and len(example.digest) == 64
    assert read(path).parts == ("background", "green", "red")


def test_rectangles_from_any_corner(tmp_path: Path) -> None:
    content = labelme(
        shape("red", [[39, 49], [10, 10]], "rectangle"), shape("green", [[50, 59], [79, 30]], "rectangle")
    )
    assert np.array_equal(mask_of(placed(tmp_path, content)), MASK)


def test_turned_rectangle(tmp_path: Path) -> None:
    content = labelme(shape("red", RED, "rotation"), shape("green", GREEN, "oriented_rectangle"))
    assert np.array_equal(mask_of(placed(tmp_path, content)), MASK)


def test_circle(tmp_path: Path) -> None:
    mask = mask_of(placed(tmp_path, labelme(shape("red", [[45, 35], [45, 55]], "circle"))))
    rows, columns = np.ogrid[:70, :90]
    away = np.hypot(rows - 35, columns - 45)
    assert (mask[away < 19] == 1).all() and (mask[away > 21] == 0).all()


def test_brush_mask(tmp_path: Path) -> None:
    stamp = np.zeros((20, 30), np.uint8)
    stamp[5:15, 5:25] = 1
    content = labelme(shape("red", [[60, 55], [89, 74]], "mask", mask=png(stamp)))
    expected = np.zeros((75, 90), np.uint8)
    expected[60:70, 65:85] = 1
    assert np.array_equal(mask_of(placed(tmp_path, content)), expected[:70])


@pytest.mark.parametrize("turned", [False, True])
def test_later_shapes_are_painted_over_earlier_ones(tmp_path: Path, turned: bool) -> None:
    whole = shape("red", [[0, 0], [89, 69]], "rectangle")
    shapes = [whole, shape("green", GREEN)]
    expected = np.ones_like(MASK) if turned else np.where(MASK == 2, 2, 1)
    assert np.array_equal(mask_of(placed(tmp_path, labelme(*(shapes[::-1] if turned else shapes)))), expected)


def test_background_shapes_cut_out(tmp_path: Path) -> None:
    cut = shape("_background_", [[20, 20], [29, 29]], "rectangle")
    annotated = read(placed(tmp_path, labelme(shape("red", RED), shape("green", GREEN), cut)))
    expected = np.array([0, 2, 1], np.uint8)[MASK]
    expected[20:30, 20:30] = 0
    assert annotated.parts == ("background", "green", "red")
    assert np.array_equal(annotated.examples[0].mask_HW, expected)


def test_the_picture_inside_the_file(tmp_path: Path) -> None:
    path = write(labelme(shape("red", RED), imageData=png(IMAGE)), tmp_path / "car.json")
    (example,) = read(path).examples
    assert np.array_equal(example.image_HW3, IMAGE) and len(example.digest) == 64


def test_the_picture_inside_the_file_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    sideways = png(np.rot90(IMAGE), exif=exif)
    (example,) = read(write(labelme(shape("red", RED), imageData=sideways), tmp_path / "car.json")).examples
    assert np.array_equal(example.image_HW3, IMAGE)


def test_relative_paths(tmp_path: Path) -> None:
    save(IMAGE, tmp_path / "images" / "car.jpg")
    for name, told in (("a", "../images/car.jpg"), ("b", "..\\images\\car.jpg"), ("c", "C:\\photos\\car.jpg")):
        write(labelme(shape("red", RED), imagePath=told), tmp_path / "json" / f"{name}.json")
    assert len(read(tmp_path).examples) == 3
    refused(
        lambda: read(write(labelme(shape("red", RED), imagePath="x.jpg"), tmp_path / "d.json")), "'x.jpg'", "d.json"
    )


def test_parts_over_all_files(tmp_path: Path) -> None:
    placed(tmp_path, labelme(shape("red", RED)))
    placed(tmp_path, labelme(shape("green", GREEN)), "other.json")
    annotated = read(tmp_path)
    assert annotated.parts == ("background", "green", "red")
    assert [sorted(np.unique(e.mask_HW).tolist()) for e in annotated.examples] == [[0, 2], [0, 1]]


MISTAKES: dict[str, tuple[object, tuple[str, ...]]] = {
    "label that is no part": (labelme(shape("wheel", RED)), ("shape 0 (wheel)", "has the name 'wheel'")),
    "empty": (labelme(), ("car.json: is empty",)),
    "nothing inside": (labelme(shape("red", [[-9, -9], [-5, -9], [-5, -5]])), ("car.json: is empty",)),
    "line": (labelme(shape("red", RED[:2], "line")), ("is a line, which has no area", "draw a polygon")),
    "point": (labelme(shape("red", RED[:1], "point")), ("is a point, which has no area",)),
    "two points": (labelme(shape("red", RED[:2])), ("is a polygon of 2 points, expected 3",)),
    "one point": (labelme(shape("red", RED[:1], "circle")), ("is a circle of 1 points, expected 2",)),
    "words": (labelme(shape("red", [["a", "b"]] * 3)), ("no pairs of numbers",)),
    "three numbers": (labelme(shape("red", [[1, 2, 3]] * 4)), ("no pairs of numbers",)),
    "far outside": (labelme(shape("red", [[1, 1], [9, 1], [1e12, 9]])), ("the point (1e+12, 9)",)),
    "no label": (labelme({"points": RED}), ("not laid out as LabelMe JSON", "label")),
    "label that is no word": (labelme(shape("red", RED) | {"label": 3}), ("not laid out as LabelMe JSON",)),
    "no image": ({"shapes": [shape("red", RED)]}, ("not laid out as LabelMe JSON", "imagePath")),
    "data that is none": (labelme(shape("red", RED), imageData="%%"), ("imageData: is no base64",)),
    "data that is no image": (labelme(shape("red", RED), imageData="aGVsbG8="), ("expected a readable JPEG",)),
    "mask that is none": (labelme(shape("red", RED, "mask", mask="aGVsbG8=")), ("mask is no readable PNG",)),
    "other size": (labelme(shape("red", RED), imageWidth=91), ("was drawn at 91x70", "is 90x70")),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(tmp_path: Path, mistake: str) -> None:
    content, told = MISTAKES[mistake]
    refused(lambda: read(placed(tmp_path, content), PARTS), "car.json", *told)


@pytest.mark.parametrize("other", [shape("red", RED[:2], "line"), shape("red", RED[:2]), shape("red", [], "circle")])
def test_one_shape_without_an_area_is_left_out(
    tmp_path: Path, other: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    path = placed(tmp_path, labelme(shape("red", RED), other, shape("green", GREEN)))
    assert np.array_equal(mask_of(path), MASK)
    (line,) = caplog.messages
    assert line.startswith("LabelMe") and "shape 1 (red)" in line and line.endswith("left out")


def test_nothing_drawn_anywhere(tmp_path: Path) -> None:
    refused(lambda: read(placed(tmp_path, labelme())), "no file has a shape")
