"""Void: pixels that count in no loss and no IoU, from each form of annotation to the figures."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from annotating import COLOURS, indexed, palette_png, refused, save, write
from painting import PARTS, Main, paint
from slime_optimize import Backbone
from slime_optimize.data.annotations import IGNORED, Example, check_parts, load_training, read
from slime_optimize.data.validation import hold_back
from slime_optimize.evaluation import read_data
from slime_optimize.method.augmentation import views
from slime_optimize.method.losses import Answer, class_weights, losses
from slime_optimize.metrics import confusion, smallest_third
from slime_optimize.picture import colour_mask, palette
from slime_optimize.presets import PRESETS
from slime_optimize.settings import Settings

IMAGE, MASK = paint()
# A border of two pixels around the red block.
VOID = MASK.copy()
VOID[8:52, 8:42] = IGNORED
VOID[10:50, 10:40] = MASK[10:50, 10:40]
PIXELS = int((VOID == IGNORED).sum())
TOLD = f"{PIXELS} pixels in 1 mask are void"


def test_255_is_void_in_masks_of_part_numbers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = save(IMAGE, tmp_path / "car.jpg")
    voc = np.zeros((256, 3), np.uint8)
    voc[[1, 2, 255]] = (128, 0, 0), (0, 128, 0), (224, 224, 192)
    np.save(tmp_path / "array.npy", VOID.astype(np.int64))
    for mask in (save(VOID, tmp_path / "m.png"), palette_png(VOID, tmp_path / "p.png", voc), tmp_path / "array.npy"):
        caplog.clear()
        (example,) = load_training([image], [mask], PARTS)
        assert np.array_equal(example.mask_HW, VOID), mask
        assert example.ignored == PIXELS and TOLD in caplog.text


def test_255_of_two_parts_is_white_unless_there_is_a_1(tmp_path: Path) -> None:
    image = save(IMAGE, tmp_path / "car.jpg")
    white = save((MASK > 0).astype(np.uint8) * np.uint8(255), tmp_path / "white.png")
    (example,) = load_training([image], [white], PARTS[:2])
    assert np.array_equal(example.mask_HW, MASK > 0)
    ringed = save(np.where(VOID == 2, 0, VOID), tmp_path / "ringed.png")
    (example,) = load_training([image], [ringed], PARTS[:2])
    assert example.ignored == PIXELS
    refused(lambda: load_training([image], [white], PARTS), "is empty", "of the value 255, which is void")


def test_a_folder_tells_how_much_is_void(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = indexed(tmp_path)
    save(VOID, folder / "masks" / "1.png")
    assert [example.ignored for example in read(folder).examples] == [0, PIXELS]
    assert TOLD in caplog.text


@pytest.mark.parametrize("name", ["void", "Ignore", "__ignore__", "_VOID_", "don't care", "Dont-Care", "dont_care"])
def test_a_colour_called_void(tmp_path: Path, name: str) -> None:
    save(IMAGE, tmp_path / "car.jpg")
    colours = np.zeros((256, 3), np.uint8)
    colours[:3], colours[255] = COLOURS, (224, 224, 192)
    save(colours[VOID], tmp_path / "car.png")
    legend = {"#000000": "background", "#e0e0c0": name, "#c81e1e": "red", "#14b428": "green"}
    write(legend, tmp_path / "legend.json")
    annotated = read(tmp_path)
    assert annotated.parts == PARTS and np.array_equal(annotated.examples[0].mask_HW, VOID)
    own = read(tmp_path, [*PARTS, name])
    assert np.array_equal(own.examples[0].mask_HW, np.where(VOID == IGNORED, 3, VOID))


def test_void_without_a_background_of_another_colour(tmp_path: Path) -> None:
    """Black, where nothing else is the background, is it, whatever its name."""
    save(IMAGE, tmp_path / "car.jpg")
    save(COLOURS[MASK], tmp_path / "car.png")
    write({"#000000": "void", "#c81e1e": "red", "#14b428": "green"}, tmp_path / "legend.json")
    annotated = read(tmp_path)
    assert annotated.parts == ("void", "red", "green") and np.array_equal(annotated.examples[0].mask_HW, MASK)


def test_void_shapes_of_labelme(tmp_path: Path) -> None:
    save(IMAGE, tmp_path / "car.jpg")
    corners = {"red": (10, 10, 39, 49), "green": (50, 30, 79, 59), "__ignore__": (20, 20, 29, 29)}
    shapes = [
        {"label": label, "points": [corner[:2], corner[2:]], "shape_type": "rectangle"}
        for label, corner in corners.items()
    ]
    write({"shapes": shapes, "imagePath": "car.jpg"}, tmp_path / "car.json")
    annotated = read(tmp_path)
    assert annotated.parts == ("background", "green", "red")
    assert annotated.examples[0].ignored == 100


def test_void_categories_of_coco(tmp_path: Path) -> None:
    save(IMAGE, tmp_path / "car.jpg")
    names = ["background", "red", "ignore"]
    boxes = {1: [10, 10, 40, 10, 40, 50, 10, 50], 2: [20, 20, 30, 20, 30, 30, 20, 30]}
    content = {
        "images": [{"id": 1, "file_name": "car.jpg"}],
        "categories": [{"id": index, "name": name} for index, name in enumerate(names)],
        "annotations": [
            {"id": index, "image_id": 1, "category_id": index, "segmentation": [points]}
            for index, points in boxes.items()
        ],
    }
    annotated = read(write(content, tmp_path / "coco.json"))
    assert annotated.parts == ("background", "red") and annotated.examples[0].ignored == 100


def test_void_layers(tmp_path: Path) -> None:
    save(IMAGE, tmp_path / "car.jpg")
    save((MASK > 0).astype(np.uint8) * np.uint8(255), tmp_path / "car_body.png")
    save((VOID == IGNORED).astype(np.uint8) * np.uint8(255), tmp_path / "car_void.png")
    annotated = read(tmp_path)
    assert annotated.parts == ("background", "body")
    assert annotated.examples[0].ignored == PIXELS


def test_one_background_in_a_list() -> None:
    refused(lambda: check_parts(["background", "red", "__background__"]), "is another name of 'background'")


def _answer(mask_Bhw: torch.Tensor, seed: int) -> tuple[Answer, torch.Tensor]:
    """Maps and noise that depend on the seed where the mask is void, and nowhere else."""
    fixed, free = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    void_B1hw = (mask_Bhw == IGNORED)[:, None]

    def drawn(channels: int) -> torch.Tensor:
        shape = (mask_Bhw.shape[0], channels, *mask_Bhw.shape[1:])
        kept, varied = torch.rand(shape, generator=fixed), torch.rand(shape, generator=free)
        return torch.where(void_B1hw, varied, kept)

    cross, logits, was, predicted, target = drawn(3), drawn(3), drawn(3), drawn(4), drawn(4)
    return Answer(cross_BPhw=cross, logits_BPhw=logits, was_BPhw=was, predicted_B4hw=predicted), target


@pytest.mark.parametrize("entropy", ["maps", "logits"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("counts", ["all", "foreground"])
def test_no_loss_counts_void(entropy: str, reduction: str, counts: str) -> None:
    settings = Settings(cross_entropy=entropy, was_reduction=reduction, class_counts=counts)
    mask_Bhw = torch.tensor([[[0, 1, 255], [2, 255, 1]], [[255, 0, 0], [1, 2, 255]]])
    totals = [losses(answer, mask_Bhw, target, settings) for answer, target in (_answer(mask_Bhw, s) for s in (1, 2))]
    for name in ("cross_entropy", "was", "diffusion", "total"):
        assert torch.equal(getattr(totals[0], name), getattr(totals[1], name)), name
    # The pixels that count, laid out as one picture of their own, give the same means.
    counted = mask_Bhw != IGNORED
    answer, target = _answer(mask_Bhw, 1)

    def alone(maps: torch.Tensor) -> torch.Tensor:
        return maps.permute(1, 0, 2, 3)[:, counted].reshape(1, maps.shape[1], 1, -1)

    only = Answer(
        cross_BPhw=alone(answer.cross_BPhw),
        logits_BPhw=alone(answer.logits_BPhw),
        was_BPhw=alone(answer.was_BPhw),
        predicted_B4hw=alone(answer.predicted_B4hw),
    )
    expected = losses(only, mask_Bhw[counted].reshape(1, 1, -1), alone(target), settings)
    assert torch.allclose(totals[0].cross_entropy, expected.cross_entropy)
    assert torch.allclose(totals[0].diffusion, expected.diffusion)
    images = len(mask_Bhw) if reduction == "sum" else 1
    assert torch.allclose(totals[0].was, expected.was / images)


@pytest.mark.parametrize("entropy", ["maps", "logits"])
def test_a_view_of_void_alone_teaches_nothing(entropy: str) -> None:
    mask_Bhw = torch.full((1, 2, 3), IGNORED)
    answer, target = _answer(mask_Bhw, 1)
    answer.cross_BPhw.requires_grad_(True)
    result = losses(answer, mask_Bhw, target, Settings(cross_entropy=entropy))
    assert float(result.total.detach()) == 0 and math.isfinite(float(result.cross_entropy.detach()))


def test_class_weights_leave_void_out() -> None:
    mask_Bhw = torch.tensor([[[0, 0, 1, 255, 255, 255]]])
    assert class_weights(mask_Bhw, 2).tolist() == [1.5, 3.0]


def test_views_do_not_mix_void_with_parts(loaded: dict[str, Backbone]) -> None:
    example = Example(name="a", image_HW3=IMAGE, mask_HW=VOID)
    settings = Settings(**{**PRESETS["best"].as_json(), "recolour_probability": 1.0, "rotation": 40.0})
    masks = [mask for _, mask in views(loaded["sd15"], [example], settings, seed=0, steps=12)]
    seen = set(torch.cat(masks).flatten().tolist())
    assert IGNORED in seen and seen <= {0, 1, 2, IGNORED}


def test_no_iou_counts_void() -> None:
    worst = np.where(VOID == IGNORED, 2, MASK).astype(np.uint8)
    counts = confusion(VOID, worst, 3)
    assert counts.sum() == VOID.size - PIXELS and counts.sum() == np.trace(counts)
    assert smallest_third([VOID], PARTS) == smallest_third([np.where(VOID == IGNORED, 0, VOID)], PARTS)


def test_void_is_no_part_that_must_be_learned() -> None:
    examples = [
        Example(name=str(index), image_HW3=IMAGE, mask_HW=mask) for index, mask in enumerate([MASK, MASK, VOID])
    ]
    assert hold_back(examples)[1] is examples[2]
    assert hold_back(examples[::-1])[1] is not None


def test_void_is_drawn_white() -> None:
    drawn = colour_mask(VOID, palette(3))
    assert (drawn[VOID == IGNORED] == 255).all() and tuple(drawn[0, 0]) == palette(3)[0]


def test_a_prepared_folder_notes_its_void_pixels(tmp_path: Path) -> None:
    for name, mask in (("a", MASK), ("b", VOID)):
        save(IMAGE, tmp_path / "images" / f"{name}.png")
        save(mask, tmp_path / "masks" / f"{name}.png")
    write(list(PARTS), tmp_path / "parts.json")
    data = read_data(tmp_path, PARTS)
    for reader in data.images:
        reader()
    assert data.ignored == {1: PIXELS}


def test_run_and_evaluate_with_void(
    tmp_path: Path,
    folders: dict[str, Path],
    run: Main,
    evaluate: Main,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    image, mask = save(IMAGE, tmp_path / "d" / "images" / "a.png"), save(VOID, tmp_path / "d" / "masks" / "a.png")
    write(list(PARTS), tmp_path / "d" / "parts.json")
    options = ["--backbone", str(folders["sd15"]), "--steps", "2", "--quiet", "--out", str(tmp_path / "s")]
    with caplog.at_level(logging.WARNING):
        assert run(["--image", str(image), "--mask", str(mask), "--parts", *PARTS, *options]) == 0
    assert TOLD in caplog.text
    assert evaluate([str(tmp_path / "s"), "--data", str(tmp_path / "d"), "--quiet"]) == 0
    assert TOLD in capsys.readouterr().err
