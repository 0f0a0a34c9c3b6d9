"""YOLO labels with outlines, in the layouts that people have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from annotating import refused, save, write
from painting import PARTS, paint
from slime_optimize.data.annotations import read

IMAGE, MASK = paint()
HEIGHT, WIDTH = MASK.shape


def row(key: int, top: int, bottom: int, left: int, right: int) -> str:
    points = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return " ".join([str(key), *(f"{x / WIDTH:.6f} {y / HEIGHT:.6f}" for x, y in points)])


RED, GREEN = row(0, 10, 50, 10, 40), row(1, 30, 60, 50, 80)
BOTH = f"{GREEN}\n\n{RED}\n"
YAML = "train: ../train/images\nnc: 2\nnames: [red, green]\n"
NAMES = {
    "data.yaml": YAML,
    "dataset.yml": "path: .\nnames:\n  0: red\n  1: green\n",
    "classes.txt": "red\ngreen\n",
    "labels/classes.txt": "red\ngreen\n",
    "obj.names": "red\ngreen",
}


def yolo(folder: Path, image: str = "images/car.png", text: str = BOTH, names: str = "data.yaml") -> Path:
    save(IMAGE, folder / image)
    label = Path("/labels/".join(f"/{image}".rsplit("/images/", 1))).with_suffix(".txt")
    write(text, folder / label.as_posix().strip("/"))
    if names:
        write(NAMES[names], folder / names)
    return folder


@pytest.mark.parametrize(
    "image", ["images/car.png", "images/train/car.tif", "train/images/car.png", "obj_train_data/car.png"]
)
@pytest.mark.parametrize("names", NAMES)
def test_layouts_and_names(tmp_path: Path, image: str, names: str) -> None:
    found = read(yolo(tmp_path, image, names=names))
    assert found.parts == PARTS and np.array_equal(found.examples[0].mask_HW, MASK)
    turned = read(tmp_path, ["background", "green", "red"]).examples[0]
    assert np.array_equal(turned.mask_HW, np.array([0, 2, 1])[MASK])


def test_a_subset_and_the_yaml_name_the_same(tmp_path: Path) -> None:
    yolo(tmp_path, "train/images/car.png")
    yolo(tmp_path, "valid/images/car.png", text=RED)
    assert len(read(tmp_path).examples) == len(read(tmp_path / "data.yaml").examples) == 2
    (example,) = read(tmp_path / "train", PARTS).examples
    assert np.array_equal(example.mask_HW, MASK)


def test_smaller_regions_lie_on_top_and_void_on_all(tmp_path: Path) -> None:
    inner = row(1, 20, 30, 15, 25)
    yolo(tmp_path, text=f"{inner}\n{RED}\n{row(2, 0, 70, 0, 20)}\n", names="")
    write("red\ngreen\nvoid\n", tmp_path / "classes.txt")
    expected = np.where(MASK == 1, 1, 0)
    expected[20:30, 15:25] = 2
    expected[:, :20] = 255
    assert np.array_equal(read(tmp_path).examples[0].mask_HW, expected)


def test_what_is_left_out_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    yolo(tmp_path, text=f"{BOTH}1 0.5 0.5 0.1 0.1\n0 0.5 0.5 0.1 0.1 0.9\n", names="")
    write("red\ngreen\nlight\n", tmp_path / "classes.txt")
    save(IMAGE, tmp_path / "images" / "none.png")
    write("", tmp_path / "labels" / "none.txt")
    found = read(tmp_path)
    assert found.parts == PARTS and np.array_equal(found.examples[0].mask_HW, MASK)
    told = caplog.text
    assert "line 4: has no outline" in told and "line 5: has no outline" in told
    assert "nothing is annotated as 'light'" in told and "1 images without labels" in told


MISTAKES = {
    # Classes counted from 1, as PyLabel writes those of COCO.
    "line 2: has the class 2, expected one of 2: red, green": f"{RED}\n{row(2, 1, 9, 1, 9)}",
    "line 2: has 7 numbers after its class": f"{RED}\n{GREEN.rpartition(' ')[0]}",
    "line 2: has the number 45, expected shares of the image's sides": f"{RED}\n0 0.1 0.1 45 0.1 0.2 0.2",
    "line 2: is 'a b', expected a class and x y": f"{RED}\na b",
    "line 2: is '0 0.1 1e 0.3 0.4'": f"{RED}\n0 0.1 1e 0.3 0.4",
    "line 1: has no outline, only a box": "0 0.5 0.5 0.1 0.1",
}


@pytest.mark.parametrize("told", MISTAKES)
def test_mistakes(tmp_path: Path, told: str) -> None:
    refused(lambda: read(yolo(tmp_path, text=MISTAKES[told])), "labels/car.txt", told)


def test_names_that_are_not_there(tmp_path: Path) -> None:
    yolo(tmp_path / "a", names="")
    refused(lambda: read(tmp_path / "a"), "nothing names its classes", "data.yaml", "classes.txt")
    write("names: [red, green]\nkpt_shape: [5, 3]\n", tmp_path / "a" / "data.yaml")
    refused(lambda: read(tmp_path / "a"), "key points")
    write("names: {1: red, 2: green}\n", tmp_path / "a" / "data.yaml")
    refused(lambda: read(tmp_path / "a"), "data.yaml: cannot be read", "names by number")
    (yolo(tmp_path / "b") / "images" / "car.png").unlink()
    refused(lambda: read(tmp_path / "b"), "labels/car.txt: has 0 images of its name")
