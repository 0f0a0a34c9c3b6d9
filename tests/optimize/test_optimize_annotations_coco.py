"""COCO JSON: polygons and run lengths against pixels painted by hand, order, names, and every mistake's line."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as run_lengths

from annotating import ORIENTATION, refused, save, write
from painting import PARTS, paint
from slime_optimize.data.annotations import read

IMAGE, MASK = paint()
HEIGHT, WIDTH = MASK.shape
RED = [10, 10, 40, 10, 40, 50, 10, 50]
GREEN = [50, 30, 80, 30, 80, 60, 50, 60]
Layout = dict[str, Any]


def uncompressed(mask_HW: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> dict[str, Any]:
    """Column by column, background first, as the format says."""
    flat = mask_HW.ravel(order="F").astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    return {"size": [HEIGHT, WIDTH], "counts": counts if not flat[0] else [0, *counts]}


def compressed(mask_HW: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> dict[str, Any]:
    encoded = run_lengths.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def region(category: int, segmentation: object, image: int = 1, **more: object) -> dict[str, Any]:
    return {"id": 10 + category, "image_id": image, "category_id": category, "segmentation": segmentation, **more}


def coco(*regions: dict[str, Any], image: Layout | None = None) -> Layout:
    entry = {"id": 1, "file_name": "car.jpg", "width": WIDTH, "height": HEIGHT} | (image or {})
    categories = [{"id": 2, "name": "green"}, {"id": 1, "name": "red"}]
    return {"images": [entry], "categories": categories, "annotations": list(regions)}


def both() -> Layout:
    return coco(region(1, [RED]), region(2, [GREEN]))


def placed(folder: Path, content: object, where: str = "coco.json") -> Path:
    save(IMAGE, folder / "images" / "car.jpg")
    return write(content, folder / where)


def test_polygons(tmp_path: Path) -> None:
    path = placed(tmp_path, both())
    for source in (path, tmp_path):
        annotated = read(source)
        (example,) = annotated.examples
        assert annotated.parts == PARTS and example.name == "car" and len(example.digest) == 64
        assert np.array_equal(example.mask_HW, MASK)


FORMS: dict[str, Callable[[Any], dict[str, Any]]] = {"uncompressed": uncompressed, "compressed": compressed}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("crowd", [0, 1])
def test_run_lengths(tmp_path: Path, form: str, crowd: int) -> None:
    """CVAT marks its brush masks as crowds."""
    regions = [region(index, FORMS[form](index == MASK), iscrowd=crowd) for index in (1, 2)]
    (example,) = read(placed(tmp_path, coco(*regions))).examples
    assert np.array_equal(example.mask_HW, MASK)


def test_several_rings_and_regions_of_one_part(tmp_path: Path) -> None:
    regions = [
        region(1, [RED, GREEN]),
        region(2, [[0, 0, 5, 0, 5, 5, 0, 5]]),
        region(2, [[0, 60, 5, 60, 5, 65, 0, 65]]),
    ]
    (example,) = read(placed(tmp_path, coco(*regions))).examples
    expected = (MASK > 0).astype(np.uint8)
    expected[0:5, 0:5] = expected[60:65, 0:5] = 2
    assert np.array_equal(example.mask_HW, expected)


@pytest.mark.parametrize("turned", [False, True])
def test_small_regions_stay_on_top(tmp_path: Path, turned: bool) -> None:
    regions = [region(1, [[0, 0, WIDTH, 0, WIDTH, HEIGHT, 0, HEIGHT]]), region(2, [GREEN])]
    (example,) = read(placed(tmp_path, coco(*(regions[::-1] if turned else regions)))).examples
    assert np.array_equal(example.mask_HW, np.where(MASK == 2, 2, 1))


def test_parts_are_matched_by_name(tmp_path: Path) -> None:
    path = placed(tmp_path, both())
    (example,) = read(path, ["background", "green", "red"]).examples
    assert np.array_equal(example.mask_HW, np.array([0, 2, 1])[MASK])
    refused(lambda: read(path, ["background", "red"]), "annotation 12", "has the name 'green'")


def test_a_category_may_be_the_background(tmp_path: Path) -> None:
    content = coco(region(1, [RED]), region(2, [GREEN]), region(0, [[0, 0, 30, 0, 30, 30, 0, 30]]))
    content["categories"].append({"id": 0, "name": "Background"})
    annotated = read(placed(tmp_path, content))
    assert annotated.parts == PARTS
    cut = MASK.copy()
    cut[:30, :30] = 0
    assert np.array_equal(annotated.examples[0].mask_HW, cut)


def test_images_without_annotations_are_left_out(tmp_path: Path) -> None:
    content = both()
    content["images"].append({"id": 2, "file_name": "not-there.jpg", "width": 1, "height": 1})
    assert len(read(placed(tmp_path, content)).examples) == 1
    content["annotations"] = []
    refused(lambda: read(placed(tmp_path, content)), "has no annotation of an image")


NAMES = ["car.jpg", "images/car.jpg", "images\\car.jpg", "/data/upload/3/car.jpg", "1a2b3c4d-car.jpg", "deep/car.jpg"]


@pytest.mark.parametrize("name", NAMES)
def test_images_are_found_by_the_names_that_exports_give(tmp_path: Path, name: str) -> None:
    path = placed(tmp_path, both() | {"images": [{"id": 1, "file_name": name}]}, "annotations/instances_default.json")
    assert len(read(tmp_path).examples) == len(read(path).examples) == 1


def test_images_in_folders_of_subsets(tmp_path: Path) -> None:
    save(IMAGE, tmp_path / "images" / "default" / "car.jpg")
    write(both(), tmp_path / "annotations" / "instances_default.json")
    assert len(read(tmp_path).examples) == 1
    save(paint(1)[0], tmp_path / "images" / "another" / "car.jpg")
    wanted = (tmp_path / "images" / "default" / "car.jpg").read_bytes()
    assert [each.digest for each in read(tmp_path).examples] == [hashlib.sha256(wanted).hexdigest()]
    (tmp_path / "annotations" / "instances_default.json").rename(tmp_path / "annotations" / "all.json")
    refused(lambda: read(tmp_path), "found 2 files of that name")


def test_missing_image(tmp_path: Path) -> None:
    path = write(both(), tmp_path / "coco.json")
    refused(lambda: read(path), "belongs to the image 'car.jpg'", "no such file", "export with the images")
    refused(lambda: read(write(both() | {"images": [{"id": 1, "file_name": ""}]}, path)), "names no image")


def test_several_files(tmp_path: Path) -> None:
    placed(tmp_path, both(), "annotations/a.json")
    save(paint(1)[0], tmp_path / "images" / "truck.jpg")
    other = both()
    other["images"][0]["file_name"] = "truck.jpg"
    write(other, tmp_path / "annotations" / "b.json")
    assert [example.name for example in read(tmp_path).examples] == ["car", "truck"]
    other["categories"][0]["name"] = "blue"
    write(other, tmp_path / "annotations" / "b.json")
    refused(lambda: read(tmp_path), "a.json and b.json have categories that differ", "name one of the files")


def test_mixed_with_other_kinds(tmp_path: Path) -> None:
    placed(tmp_path, both())
    write({"shapes": [], "imagePath": "car.jpg"}, tmp_path / "car.json")
    refused(lambda: read(tmp_path), "mixes", "LabelMe (car.json)", "COCO (coco.json)")
    (tmp_path / "car.json").unlink()
    save(MASK, tmp_path / "masks" / "car.png")
    refused(lambda: read(tmp_path), "mixes COCO JSON and the masks of")
    legend = write({"#ff0000": "red"}, tmp_path / "legend.json")
    refused(lambda: read(tmp_path, legend=legend), "names its parts itself")


def _id_without_a_name() -> Layout:
    return coco(region(3, [RED]))


def _two_names() -> Layout:
    content = both()
    content["categories"].append({"id": 1, "name": "blue"})
    return content


def _without(key: str) -> Layout:
    return coco({name: value for name, value in region(1, [RED]).items() if name != key})


FILL = [HEIGHT * WIDTH]
MISTAKES: dict[str, tuple[object, tuple[str, ...]]] = {
    "category id without a name": (_id_without_a_name(), ("annotation 13", "category id 3", "1, 2")),
    "id with two names": (_two_names(), ("category 1 is both 'red' and 'blue'",)),
    "annotation of no image": (coco(region(1, [RED], image=7)), ("annotation 11 is of image 7",)),
    "box alone": (coco(region(1, [], bbox=[1, 1, 9, 9])), ("annotation 11", "only a box", "polygon or brush")),
    "no segmentation": (_without("segmentation"), ("no outline",)),
    "no category": (_without("category_id"), ("not laid out as COCO JSON", "category_id")),
    "annotation that is none": (both() | {"annotations": [3]}, ("not laid out as COCO JSON",)),
    "two points": (coco(region(1, [[1, 1, 9, 9]])), ("fewer than 3 points",)),
    "odd numbers": (coco(region(1, [[1, 1, 9, 9, 4, 4, 5]])), ("no pairs of numbers",)),
    "words": (coco(region(1, [["a", "b", "c", "d", "e", "f"]])), ("no pairs of numbers",)),
    "not a number": (coco(region(1, [[1, 1, 9, 9, 4, float("nan")]])), ("the point (4, nan)",)),
    "far outside": (coco(region(1, [[1, 1, 9, 9, 4, 1e9]])), ("the point (4, 1e+09)", "90x70")),
    "empty mask": (coco(region(1, uncompressed(MASK == 9))), ("image 'car.jpg': is empty",)),
    "short run lengths": (coco(region(1, {"size": [70, 90], "counts": [5, 5]})), ("do not fill the image",)),
    "negative run length": (coco(region(1, {"size": [70, 90], "counts": [-5, *FILL, 5]})), ("do not fill",)),
    "broken run lengths": (coco(region(1, {"size": [70, 90], "counts": "zzzzz"})), ("do not fill the image",)),
    "other run lengths": (coco(region(1, {"size": [90, 70], "counts": FILL})), ("for [height, width] [90, 70]",)),
    "other size": (coco(region(1, [RED]), image={"width": 180}), ("was drawn at 180x70", "is 90x70")),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(tmp_path: Path, mistake: str) -> None:
    content, told = MISTAKES[mistake]
    refused(lambda: read(placed(tmp_path, content)), "coco.json", *told)


WITHOUT_AREA = {"two points": [[1, 1, 9, 9]], "box": [], "none": None, "empty ring": [[]]}


@pytest.mark.parametrize("kind", WITHOUT_AREA)
def test_one_annotation_without_an_area_is_left_out(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    content = both()
    content["annotations"].append(region(1, WITHOUT_AREA[kind], bbox=[1, 1, 9, 9]) | {"id": 77})
    (example,) = read(placed(tmp_path, content)).examples
    assert np.array_equal(example.mask_HW, MASK)
    (line,) = caplog.messages
    assert line.startswith("COCO") and "annotation 77" in line and line.endswith("left out")


def test_one_ring_without_an_area_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (example,) = read(placed(tmp_path, coco(region(1, [[1, 1, 9, 9], RED]), region(2, [GREEN])))).examples
    assert np.array_equal(example.mask_HW, MASK) and "annotation 11" in caplog.text


def test_ids_in_quotation_marks(tmp_path: Path) -> None:
    for image, category in ((str, int), (int, str), (str, str)):
        content = coco(region(1, [RED], image=image(1)), region(2, [GREEN]))
        for each in content["annotations"]:
            each["category_id"] = category(each["category_id"])
        annotated = read(placed(tmp_path, content))
        assert annotated.parts == PARTS and np.array_equal(annotated.examples[0].mask_HW, MASK)


def test_categories_that_nobody_drew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Roboflow's COCO has one for the project itself, with the id 0."""
    content = both()
    content["categories"] = [{"id": 0, "name": "car-parts"}, *content["categories"], {"id": 10, "name": "roof"}]
    path = placed(tmp_path, content)
    assert read(path).parts == PARTS
    assert "nothing is annotated as 'car-parts', 'roof', left out of the parts" in caplog.text
    asked = (*PARTS, "roof")
    assert read(path, asked).parts == asked


def test_size_of_the_sideways_picture_is_refused(tmp_path: Path) -> None:
    """Exports that write the size of the raw pixels have coordinates of an unknown orientation."""
    content = coco(region(1, [RED]), image={"width": 70, "height": 90})
    path = placed(tmp_path, content)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(np.rot90(IMAGE)).save(tmp_path / "images" / "car.jpg", exif=exif)
    refused(lambda: read(path), "was drawn at 70x90", "once turned upright by its EXIF tag", "save the image upright")


def test_broken_json(tmp_path: Path) -> None:
    refused(lambda: read(placed(tmp_path, "{")), "coco.json: cannot be read as JSON")
    refused(lambda: read(placed(tmp_path, {"images": []})), "neither COCO (images, annotations, categories)")
