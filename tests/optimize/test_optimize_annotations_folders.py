"""Folders of images and masks: which file belongs to which, several masks for one image, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from annotating import COLOURS, LEGEND, folder_of, indexed, refused, save, write
from painting import PARTS, paint
from slime_optimize.data.annotations import read

IMAGE, MASK = paint()


def masks_are(folder: Path, names: list[str], **options: object) -> None:
    annotated = read(folder, **options)  # type: ignore[arg-type]
    assert [example.name for example in annotated.examples] == names
    assert all(np.array_equal(example.mask_HW, MASK) for example in annotated.examples)
    assert annotated.parts == PARTS


@pytest.mark.parametrize(
    ("images", "masks"), [("images", "masks"), ("img", "labels"), ("Images", "Mask"), (".", "masks")]
)
def test_two_folders(tmp_path: Path, images: str, masks: str) -> None:
    for name in ("car", "truck"):
        save(IMAGE, tmp_path / images / f"{name}.jpg")
        save(MASK, tmp_path / masks / f"{name}.png")
    write(list(PARTS), tmp_path / "parts.json")
    masks_are(tmp_path, ["car", "truck"])


@pytest.mark.parametrize("mask", ["car.png", "car.npy", "car_mask.png", "car-parts.png", "car_labels.npy"])
def test_side_by_side(tmp_path: Path, mask: str) -> None:
    save(IMAGE, tmp_path / "car.JPG", format="JPEG")
    if mask.endswith("npy"):
        np.save(tmp_path / mask, MASK)
    else:
        save(MASK, tmp_path / mask)
    masks_are(tmp_path, ["car"], parts=PARTS)


def test_png_beside_png(tmp_path: Path) -> None:
    for name in ("car", "car_red_one", "truck"):
        save(IMAGE, tmp_path / f"{name}.jpg" if name == "car_red_one" else tmp_path / f"{name}.png")
        save(MASK, tmp_path / f"{name}-parts.png")
    masks_are(tmp_path, ["car", "car_red_one", "truck"], parts=PARTS)


def test_colours_with_a_legend_in_the_folder(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, lambda mask, path: save(COLOURS[mask], path))
    write(LEGEND, folder / "legend.json")
    masks_are(folder, ["0", "1"])
    swapped = read(folder, ["background", "green", "red"])
    assert np.array_equal(swapped.examples[0].mask_HW, np.array([0, 2, 1])[MASK])


LAYERS = ["masks/car/{}.png", "masks/car_{}.png", "masks/car-{}.png", "car/{}.png", "car_{}.png"]


@pytest.mark.parametrize("pattern", LAYERS)
def test_a_mask_for_each_part(tmp_path: Path, pattern: str) -> None:
    save(IMAGE, (tmp_path / "images" if pattern.startswith("masks") else tmp_path) / "car.jpg")
    for index in (1, 2):
        save((index == MASK).astype(np.uint8) * np.uint8(255), tmp_path / pattern.format(PARTS[index]))
    masks_are(tmp_path, ["car"], parts=PARTS)
    annotated = read(tmp_path)
    assert annotated.parts == ("background", "green", "red")
    assert np.array_equal(annotated.examples[0].mask_HW, np.array([0, 2, 1])[MASK])


def test_later_parts_win_where_masks_overlap(tmp_path: Path) -> None:
    save(IMAGE, tmp_path / "car.jpg")
    save(np.full_like(MASK, 255), tmp_path / "car_red.png")
    save((MASK == 2).astype(np.uint8) * np.uint8(255), tmp_path / "car_green.png")
    (example,) = read(tmp_path, PARTS).examples
    assert np.array_equal(example.mask_HW, np.where(MASK == 2, 2, 1))
    (example,) = read(tmp_path, ["background", "green", "red"]).examples
    assert (example.mask_HW == 2).all()


def test_how_a_part_may_be_painted(tmp_path: Path) -> None:
    """Black and white; bits; 0 and 1; white on nothing; smoothed; 16 bits; truth values."""
    one, painted = MASK == 1, np.full(MASK.shape, 255, np.uint8)
    white = np.where(one, 255, 0).astype(np.uint8)
    smooth = np.where(one, 200, 60).astype(np.uint8)
    smooth[0, 0] = 127
    forms = [
        Image.fromarray(white),
        Image.fromarray(one),
        Image.fromarray(one.astype(np.uint8)),
        Image.fromarray(np.dstack([painted, painted, painted, white])),
        Image.fromarray(np.dstack([white] * 3)),
        Image.fromarray(smooth),
        Image.fromarray(white.astype(np.uint16) * 257),
    ]
    for number, form in enumerate(forms):
        folder = tmp_path / str(number)
        save(IMAGE, folder / "car.jpg")
        form.save(folder / "car_red.png")
        assert np.array_equal(read(folder).examples[0].mask_HW, one), number
    save(IMAGE, tmp_path / "array" / "car.jpg")
    np.save(tmp_path / "array" / "car_red.npy", one)
    assert np.array_equal(read(tmp_path / "array").examples[0].mask_HW, one)


def test_empty_layers(tmp_path: Path) -> None:
    save(IMAGE, tmp_path / "car.jpg")
    save(np.zeros_like(MASK), tmp_path / "car_red.png")
    refused(lambda: read(tmp_path), "masks of", "car.jpg: is empty")


def test_layer_that_is_no_part(tmp_path: Path) -> None:
    save(IMAGE, tmp_path / "car.jpg")
    save(MASK, tmp_path / "car_wheel.png")
    refused(lambda: read(tmp_path, PARTS), "has the name 'wheel'", "background, red, green")


def test_missing_and_stray_masks(tmp_path: Path) -> None:
    folder = indexed(tmp_path)
    (folder / "masks" / "1.png").rename(folder / "masks" / "one.png")
    refused(lambda: read(folder), "one.png: there is no image for it")
    (folder / "masks" / "one.png").unlink()
    refused(lambda: read(folder), "1.png: no such file, expected a mask for the image")


def test_mixed_kinds(tmp_path: Path) -> None:
    folder = indexed(tmp_path)
    save(MASK, folder / "masks" / "1_red.png")
    refused(lambda: read(folder), "has a mask for all parts, 1.png, and for one, 1_red.png")
    (folder / "masks" / "1.png").unlink()
    refused(lambda: read(folder), "1.jpg has a mask for each part, 0.jpg one for all")
    refused(lambda: read(folder, legend=write(LEGEND, tmp_path / "l.json")), "expected one kind")


def test_two_of_one_name(tmp_path: Path) -> None:
    folder = indexed(tmp_path)
    np.save(folder / "masks" / "0.npy", MASK)
    refused(lambda: read(folder), "has 2 masks, 0.npy and 0.png")
    (folder / "masks" / "0.npy").unlink()
    save(IMAGE, folder / "images" / "0.png")
    refused(lambda: read(folder), "0.png: there is 0.jpg too")
    save(IMAGE, tmp_path / "b" / "car.jpg")
    for name in ("car_red.png", "car-red.png"):
        save(MASK, tmp_path / "b" / name)
    refused(lambda: read(tmp_path / "b"), "two masks called 'red'")


def test_legend_with_layers(tmp_path: Path) -> None:
    save(IMAGE, tmp_path / "car.jpg")
    save(MASK, tmp_path / "car_red.png")
    refused(lambda: read(tmp_path, legend=write(LEGEND, tmp_path / "legend.json")), "one for each part", "--legend out")


def test_sources_that_are_none(tmp_path: Path) -> None:
    refused(lambda: read(tmp_path / "nowhere"), "no such file or folder", "docs/annotations.md")
    (tmp_path / "empty").mkdir()
    refused(lambda: read(tmp_path / "empty"), "has no images")
    refused(lambda: read(write("", tmp_path / "export.zip")), "unpack it first")
    refused(lambda: read(save(IMAGE, tmp_path / "car.jpg")), "is a .jpg file", "expected a folder of images")
    refused(lambda: read(tmp_path), "car.png: no such file, expected a mask")


def test_other_json_may_lie_beside_masks(tmp_path: Path) -> None:
    folder = indexed(tmp_path)
    write(["a caption"], folder / "captions.json")
    assert len(read(folder).examples) == 2
    save(IMAGE, tmp_path / "b" / "car.jpg")
    write({"car.jpg": {"regions": []}}, tmp_path / "b" / "via.json")
    refused(lambda: read(tmp_path / "b"), "via.json: is neither COCO", "LabelMe")


@pytest.mark.parametrize(("images", "masks"), [("images", "masks"), ("img_dir", "ann_dir"), ("Images", "labels")])
@pytest.mark.parametrize("subsets", [("train", "val"), ("cam/one", "cam/two"), (".", "val")])
def test_folders_of_subsets(tmp_path: Path, images: str, masks: str, subsets: tuple[str, str]) -> None:
    """Masks of one name in two subsets stay with the images of theirs."""
    for number, subset in enumerate(subsets):
        image, mask = paint(number)
        save(image, tmp_path / images / subset / "car.png")
        save(mask, tmp_path / masks / subset / "car.png")
    examples = read(tmp_path, PARTS).examples
    assert len(examples) == 2
    for number, example in enumerate(examples):
        image, mask = paint(number)
        assert np.array_equal(example.image_HW3, image) and np.array_equal(example.mask_HW, mask)


def test_a_subset_without_masks_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(IMAGE, tmp_path / "images" / "test" / "car.jpg")
    save(IMAGE, tmp_path / "images" / "train" / "car.jpg")
    save(MASK, tmp_path / "masks" / "train" / "car.png")
    masks_are(tmp_path, ["car"], parts=PARTS)
    assert "test: there is no folder" in caplog.text
    save(MASK, tmp_path / "masks" / "val" / "car.png")
    refused(lambda: read(tmp_path, PARTS), "there is no image called val")


def test_cvat_frames_in_folders(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(IMAGE, tmp_path / "JPEGImages" / "sub" / f"{name}.jpg")
    save(COLOURS[MASK], tmp_path / "SegmentationClass" / "sub" / "a.png")
    write("background:0,0,0::\nred:200,30,30::\ngreen:20,180,40::\nplate:1,2,3::\n", tmp_path / "labelmap.txt")
    masks_are(tmp_path, ["a"])


def test_roboflow_names_in_csv(tmp_path: Path) -> None:
    save(IMAGE, tmp_path / "car.jpg")
    save(MASK, tmp_path / "car_mask.png")
    write("Pixel Value, Class\n0, background\n1, red\n2, green\n", tmp_path / "_classes.csv")
    masks_are(tmp_path, ["car"])
    write("Pixel Value, Class\n0, background\n2, red\n", tmp_path / "_classes.csv")
    refused(lambda: read(tmp_path), "_classes.csv: its pixel values are not 0, 1, 2")
    write("Pixel Value, Class\nx, background\n", tmp_path / "_classes.csv")
    refused(lambda: read(tmp_path), "_classes.csv: cannot be read")


def test_roboflow_classes_that_nobody_painted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(IMAGE, tmp_path / "car.jpg")
    save(np.array([0, 1, 3], np.uint8)[MASK], tmp_path / "car_mask.png")
    write("Pixel Value, Class\n0, background\n1, red\n2, light\n3, green\n4, window\n", tmp_path / "_classes.csv")
    masks_are(tmp_path, ["car"])
    assert "nothing is painted as 'light', 'window', left out of the parts" in caplog.text
    masks_are(tmp_path, ["car"], parts=PARTS)
    assert read(tmp_path, ["background", "red", "light", "green"]).parts[2] == "light"
    refused(lambda: read(tmp_path, ["background", "red"]), "has the name 'green'")


def test_advice_where_the_image_is_not_read(tmp_path: Path) -> None:
    save(MASK, tmp_path / "car.png")
    write("II*", tmp_path / "car.xyz")
    refused(lambda: read(tmp_path, PARTS), "car.png: has no mask", "the mask of car.xyz, which is not read")
