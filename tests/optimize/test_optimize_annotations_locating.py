"""Which file is the image of which entry: by its whole path, by less of it where that is unique, never another's."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from unicodedata import normalize

import numpy as np
import pytest

from annotating import COLOURS, LEGEND, refused, save, write
from painting import paint
from slime_optimize.data.annotations import read

IMAGE, MASK = paint()
HEIGHT, WIDTH = MASK.shape
RED = [10, 10, 40, 10, 40, 50, 10, 50]
LOCAL = "/data/local-files/?d="
SIGNED = "https://b.s3.amazonaws.com/cars/a.jpg?X-Amz-Expires=3600"


def coco(*names: str, categories: Sequence[dict[str, Any]] = ({"id": 1, "name": "red"},)) -> dict[str, Any]:
    images = [{"id": n, "file_name": name, "width": WIDTH, "height": HEIGHT} for n, name in enumerate(names)]
    regions = [{"id": n, "image_id": n, "category_id": 1, "segmentation": [RED]} for n in range(len(names))]
    return {"images": images, "annotations": regions, "categories": list(categories)}


def picture(path: Path, number: int = 0) -> str:
    return hashlib.sha256(save(paint(number)[0], path).read_bytes()).hexdigest()


def digests(source: Path) -> list[str]:
    return [example.digest for example in read(source).examples]


@pytest.mark.parametrize("images", ["images", ".", "images/default", "default"])
def test_frames_of_one_name_in_folders(tmp_path: Path, images: str) -> None:
    wanted = [picture(tmp_path / images / f"cam{n}" / "frame.jpg", n) for n in (1, 2)]
    path = write(coco("cam1/frame.jpg", "cam2/frame.jpg"), tmp_path / "annotations" / "instances_default.json")
    assert digests(tmp_path) == digests(path) == wanted and wanted[0] != wanted[1]


def test_official_coco(tmp_path: Path) -> None:
    """Two subsets in folders beside annotations/, with the files of key points and captions."""
    wanted = [picture(tmp_path / f"{subset}2017" / "000139.jpg", n) for n, subset in enumerate(("train", "val"))]
    for subset in ("train", "val"):
        write(coco("000139.jpg"), tmp_path / "annotations" / f"instances_{subset}2017.json")
    people = coco("000139.jpg", categories=[{"id": 1, "name": "person", "keypoints": ["nose"]}])
    write(people, tmp_path / "annotations" / "person_keypoints_val2017.json")
    write({"images": [], "annotations": []}, tmp_path / "annotations" / "captions_val2017.json")
    assert digests(tmp_path) == wanted
    assert digests(tmp_path / "annotations" / "instances_val2017.json") == wanted[1:]


def test_parent_of_a_named_file_is_searched(tmp_path: Path) -> None:
    wanted = picture(tmp_path / "photos" / "a.jpg")
    assert digests(write(coco("a.jpg"), tmp_path / "annotations" / "c.json")) == [wanted]


@pytest.mark.parametrize("there", ["cam1/frame.jpg", "frame.jpg", "elsewhere/frame.jpg"])
@pytest.mark.parametrize("annotated", [1, 2])
def test_one_file_is_never_two_entries(tmp_path: Path, there: str, annotated: int) -> None:
    """Also where the other entry was not annotated."""
    picture(tmp_path / there)
    content = coco("cam2/frame.jpg", "cam1/frame.jpg")
    content["annotations"] = content["annotations"][:annotated]
    refused(lambda: read(write(content, tmp_path / "c.json")), "cam2/frame.jpg", "put them where the name says")


def test_an_image_that_is_listed_twice(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    refused(lambda: read(write(coco("a.jpg", "a.jpg"), tmp_path / "c.json")), "already the image of the entry 'a.jpg'")


SPELLINGS = {
    "my%20car.jpg": "my car.jpg",
    "100%25 a.jpg": "100% a.jpg",
    "50%20.jpg": "50%20.jpg",
    SIGNED: "a.jpg",
    "https://host/b/my%20a.jpg": "images/my a.jpg",
    f"{LOCAL}a.jpg": "a.jpg",
    f"{LOCAL}cars/my%20a.jpg": "my a.jpg",
    f"{LOCAL}cars%2Fa+b.jpg": "cars/a+b.jpg",
    "s3://bucket/cars/a.jpg": "cars/a.jpg",
    "T\u00fcr 1.jpg": "Tu\u0308r 1.jpg",
    "Tu\u0308r/T\u00fcr 1.jpg": "T\u00fcr/Tu\u0308r 1.jpg",
    "C:\\photos\\a.jpg": "a.jpg",
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings_of_names(tmp_path: Path, name: str) -> None:
    wanted = picture(tmp_path / SPELLINGS[name])
    picture(tmp_path / "other.jpg", 1)
    (example,) = read(write(coco(name), tmp_path / "c.json")).examples
    assert example.digest == wanted and example.name == Path(SPELLINGS[name]).stem


def test_brush_masks_of_local_files(tmp_path: Path) -> None:
    wanted = picture(tmp_path / "my a.jpg")
    save((MASK == 1).astype(np.uint8), tmp_path / "task-7-annotation-3-by-1-tag-red-0.png")
    tasks = [{"id": 7, "data": {"image": f"{LOCAL}my%20a.jpg"}}, {"id": 8, "data": {"image": "/data/x.jpg"}}]
    write(tasks, tmp_path / "project.json")
    assert digests(tmp_path) == [wanted]


@pytest.mark.parametrize("folders", [("cam1", "cam2"), ("C:\\one", "C:\\two")])
def test_labelme_files_of_two_images(tmp_path: Path, folders: tuple[str, str]) -> None:
    picture(tmp_path / "frame.jpg")
    for number, folder in enumerate(folders):
        shape = {"label": "red", "points": [[1, 1], [9, 1], [9, 9]]}
        write({"shapes": [shape], "imagePath": f"{folder}/frame.jpg"}, tmp_path / f"{number}.json")
    refused(lambda: read(tmp_path), "frame.jpg")


def test_names_of_parts_in_either_form(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    path = write(coco("a.jpg", categories=[{"id": 1, "name": "Tu\u0308r"}]), tmp_path / "c.json")
    assert read(path, ["background", "T\u00fcr"]).parts == read(path).parts == ("background", "T\u00fcr")
    assert read(path, ["background", "Tu\u0308r"]).parts == ("background", "T\u00fcr")


@pytest.mark.parametrize("kind", ["layers", "folder", "stem", "parts.json", "legend.json", "classes.txt"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_in_either_form_wherever_names_stand(tmp_path: Path, kind: str, form: Literal["NFC", "NFD"]) -> None:
    parts = ("background", "Tür", "grün")
    on_disk = [normalize(form, name) for name in parts]
    car = normalize(form, "Tür 1")
    save(IMAGE, tmp_path / ("images/Tür 1.jpg" if kind == "stem" else "Tür 1.jpg"))
    if kind in ("layers", "folder"):
        for index in (1, 2):
            path = (
                tmp_path / car / f"{on_disk[index]}.png"
                if kind == "folder"
                else tmp_path / f"{car}_{on_disk[index]}.png"
            )
            save((index == MASK).astype(np.uint8) * np.uint8(255), path)
    elif kind == "classes.txt":
        boxes = ("0 .1111111 .1428571 .4444444 .1428571 .4444444 .7142857 .1111111 .7142857",)
        boxes += ("1 .5555556 .4285714 .8888889 .4285714 .8888889 .8571429 .5555556 .8571429",)
        write("\n".join(boxes), tmp_path / f"{car}.txt")
        write("\n".join(on_disk[1:]), tmp_path / kind)
    elif kind == "legend.json":
        save(COLOURS[MASK], tmp_path / f"{car}_mask.png")
        write(dict(zip(LEGEND, on_disk, strict=True)), tmp_path / kind)
    else:
        save(MASK, tmp_path / ("masks" if kind == "stem" else ".") / f"{car}{'' if kind == 'stem' else '_mask'}.png")
        write(on_disk, tmp_path / "parts.json")
    for asked in (None, parts, on_disk):
        found = read(tmp_path, asked)
        order = np.array([found.parts.index(name) for name in parts])
        assert np.array_equal(found.examples[0].mask_HW, order[MASK])
