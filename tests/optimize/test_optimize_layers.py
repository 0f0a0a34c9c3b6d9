"""Masks of one part each: which files are such masks, what they are named after, and which are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from annotating import COLOURS, palette_png, refused, save, write
from painting import PARTS, paint
from slime_optimize.data.annotations import read

IMAGE, MASK = paint()
WHITE = np.uint8(255)


def layer(index: int, path: Path) -> Path:
    return save((index == MASK).astype(np.uint8) * WHITE, path)


@pytest.mark.parametrize("ending", ["gt", "GT", "labelIds", "annotation", "index"])
def test_masks_of_all_parts_by_common_endings(tmp_path: Path, ending: str) -> None:
    save(IMAGE, tmp_path / "a.jpg")
    save(MASK, tmp_path / f"a_{ending}.png")
    refused(lambda: read(tmp_path), "names no parts", "--parts")
    assert np.array_equal(read(tmp_path, PARTS).examples[0].mask_HW, MASK)


@pytest.mark.parametrize("ending", ["L", "v2", "truth1"])
@pytest.mark.parametrize("scale", [1, 100])
def test_a_mask_of_all_parts_by_an_unknown_ending(tmp_path: Path, ending: str, scale: int) -> None:
    save(IMAGE, tmp_path / "a.jpg")
    save(MASK * np.uint8(scale), tmp_path / f"a_{ending}.png")
    refused(lambda: read(tmp_path), f"a_{ending}.png", "3 values", "black and white", "NAME_mask.png")
    refused(lambda: read(tmp_path, PARTS), f"has the name '{ending}'", "NAME_mask.png")
    refused(lambda: read(tmp_path, [*PARTS, ending]), "3 values", "black and white")


def test_pictures_that_are_no_masks(tmp_path: Path) -> None:
    """A coloured preview, a palette of several colours, an array of part numbers, and grey in four steps."""
    save(IMAGE, tmp_path / "a.jpg")
    path = tmp_path / "a_red.png"
    save(COLOURS[MASK], path)
    refused(lambda: read(tmp_path), "several colours", "previews")
    save(IMAGE, path)
    refused(lambda: read(tmp_path), "several colours")
    palette_png(MASK, path)
    refused(lambda: read(tmp_path), "several colours")
    save(np.array([0, 85, 170], np.uint8)[MASK], path)
    refused(lambda: read(tmp_path), "3 values from 0 to 170")
    save(MASK.astype(np.uint16) * 30000, path)
    refused(lambda: read(tmp_path), "3 values from 0 to 60000")
    path.unlink()
    np.save(path.with_suffix(".npy"), MASK)
    refused(lambda: read(tmp_path), "3 values from 0 to 2")


def test_black_and_white_of_other_kinds(tmp_path: Path) -> None:
    """Two values of which none is 0; one colour on black; a palette; a blurred edge; a scan's noise."""
    one = MASK == 1
    noisy = np.random.default_rng(0).integers(0, 12, MASK.shape) + np.where(one, 240, 0)
    rows = np.linspace(0, 255, 12).round()
    blurred = np.concatenate([np.zeros(20), rows, np.full(MASK.shape[1] - 32, 255)])
    forms = {
        "grey": (Image.fromarray(np.where(one, 200, 60).astype(np.uint8)), one),
        "colour": (Image.fromarray((one[..., None] * COLOURS[1]).astype(np.uint8)), one),
        "noisy": (Image.fromarray(noisy.astype(np.uint8)), one),
        "blurred": (
            Image.fromarray(np.broadcast_to(blurred, MASK.shape).astype(np.uint8)),
            np.broadcast_to(blurred >= 128, MASK.shape),
        ),
    }
    for name, (picture, expected) in forms.items():
        save(IMAGE, tmp_path / name / "car.jpg")
        picture.save(tmp_path / name / "car_red.png")
        assert np.array_equal(read(tmp_path / name).examples[0].mask_HW, expected), name


def test_the_choice_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(IMAGE, tmp_path / "car.jpg")
    for index in (1, 2):
        layer(index, tmp_path / f"car_{PARTS[index]}.png")
    read(tmp_path, PARTS)
    assert "2 black and white masks such as car_green.png are one for each part, as --parts names them" in caplog.text
    caplog.clear()
    read(tmp_path)
    assert "in the order of their names, the larger painted first" in caplog.text


def test_one_file_that_is_no_part(tmp_path: Path) -> None:
    save(IMAGE, tmp_path / "car.jpg")
    layer(1, tmp_path / "car_red.png")
    layer(2, tmp_path / "car_blue.png")
    refused(lambda: read(tmp_path, PARTS), "car_blue.png: has the name 'blue'", "name it in --parts")
    write(list(PARTS), tmp_path / "parts.json")
    refused(lambda: read(tmp_path), "car_blue.png: has the name 'blue'", "name it in parts.json")


@pytest.mark.parametrize("pattern", ["car_class_{}.png", "car_Class-{}.png", "car_{}.png"])
def test_rectlabel_and_spelling(tmp_path: Path, pattern: str) -> None:
    save(IMAGE, tmp_path / "car.jpg")
    layer(1, tmp_path / pattern.format("Red"))
    layer(2, tmp_path / pattern.format("front_wheel"))
    (example,) = read(tmp_path, ["background", "red", "front wheel"]).examples
    assert np.array_equal(example.mask_HW, MASK)
    assert read(tmp_path).parts == ("background", "Red", "front_wheel")


def test_a_part_called_class(tmp_path: Path) -> None:
    save(IMAGE, tmp_path / "car.jpg")
    layer(1, tmp_path / "car_class_a.png")
    layer(2, tmp_path / "car_other.png")
    assert read(tmp_path).parts == ("background", "class_a", "other")
    (example,) = read(tmp_path, ["background", "class a", "other"]).examples
    assert np.array_equal(example.mask_HW, MASK)


def test_smaller_parts_lie_on_larger_ones_where_no_list_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A wheel within a body, whose name comes before the body's."""
    save(IMAGE, tmp_path / "car.jpg")
    wheel = layer(2, tmp_path / "car_Wheel.png")
    save((MASK > 0).astype(np.uint8) * WHITE, tmp_path / "car_body.png")
    annotated = read(tmp_path)
    assert annotated.parts == ("background", "Wheel", "body")
    assert np.array_equal(annotated.examples[0].mask_HW, np.array([0, 2, 1])[MASK])
    assert np.array_equal(read(tmp_path, ["background", "body", "Wheel"]).examples[0].mask_HW, MASK)
    caplog.clear()
    read(tmp_path, ["background", "Wheel", "body"])
    assert "'Wheel' cannot be seen" in caplog.text and "name last what lies on top" in caplog.text
    assert wheel.exists()


@pytest.mark.parametrize("folders", [(".", "."), ("images", "masks"), ("images", "images")])
def test_overlays_are_no_images_and_no_masks(tmp_path: Path, folders: tuple[str, str]) -> None:
    images, masks = (tmp_path / folder for folder in folders)
    save(IMAGE, images / "car.jpg")
    save(IMAGE, images / "car-overlay.jpg")
    save(MASK, masks / "car_mask.png")
    save(IMAGE, masks / "car-overlay.png")
    examples = read(tmp_path, PARTS).examples
    assert [example.name for example in examples] == ["car"]
    assert np.array_equal(examples[0].mask_HW, MASK)


def test_an_image_called_overlay_is_one(tmp_path: Path) -> None:
    save(IMAGE, tmp_path / "glass-overlay.jpg")
    save(MASK, tmp_path / "glass-overlay.png")
    assert [example.name for example in read(tmp_path, PARTS).examples] == ["glass-overlay"]


def brush(folder: Path, person: str, tag: str, labels: dict[str, int]) -> None:
    save(IMAGE, folder / "car.jpg")
    for label, index in labels.items():
        layer(index, folder / f"task-3-annotation-5-by-{person}-{tag}-{label}-0.png")


@pytest.mark.parametrize("person", ["1", "", "me@here.org", "first-last@example.org", "a-b@my-firm.co-op.org", "me"])
def test_brush_masks_of_people_with_hyphens(tmp_path: Path, person: str) -> None:
    brush(tmp_path, person, "tag", {"Body": 1, "Front wheel": 2})
    annotated = read(tmp_path)
    assert annotated.parts == ("background", "Body", "Front wheel")
    assert np.array_equal(annotated.examples[0].mask_HW, MASK)


def test_brush_labels_with_hyphens_from_the_projects_json(tmp_path: Path) -> None:
    """Without it, "last-my-tag-rear-lamp" may begin its label anywhere."""
    brush(tmp_path, "first-last", "my-tag", {"lamp": 1, "rear-lamp": 2})
    refused(lambda: read(tmp_path), "does not say where the label begins", "JSON export", "--parts")
    parts = ("background", "lamp", "rear-lamp")
    assert np.array_equal(read(tmp_path, parts).examples[0].mask_HW, MASK)
    results = [{"value": {"brushlabels": [label]}} for label in parts[1:]]
    write([{"id": 3, "data": {"image": "/x/car.jpg"}, "annotations": [{"result": results}]}], tmp_path / "p.json")
    annotated = read(tmp_path)
    assert annotated.parts == parts and np.array_equal(annotated.examples[0].mask_HW, MASK)
    refused(lambda: read(tmp_path, ("background", "lamp")), "has the name 'rear-lamp'")
