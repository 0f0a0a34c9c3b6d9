"""Forms of one whole mask: what each is read as, and every wrong one with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from annotating import COLOURS, LEGEND, folder_of, indexed, palette_png, refused, save, write
from painting import PARTS, paint
from slime_optimize.commands import run as command
from slime_optimize.data import annotations
from slime_optimize.data.annotations import check_painted, find_legend, load_legend, load_training, read

IMAGE, MASK = paint()


def load_mask(path: Path, *legend_and_parts: Any) -> npt.NDArray[np.uint8]:
    return annotations.load_mask(path, *legend_and_parts).values_HW


def test_index_masks_of_every_kind(tmp_path: Path) -> None:
    grey16 = MASK.astype(np.uint16)
    paths = [
        save(MASK, tmp_path / "grey.png"),
        save(grey16, tmp_path / "grey16.png"),
        palette_png(MASK, tmp_path / "palette.png"),
    ]
    for dtype in (np.uint8, np.int64, np.uint16):
        paths.append(tmp_path / f"{np.dtype(dtype)}.npy")
        np.save(paths[-1], MASK.astype(dtype))
    for path in paths:
        loaded = load_mask(path)
        assert loaded.dtype == np.uint8 and np.array_equal(loaded, MASK), path


def test_two_parts_may_be_black_and_white(tmp_path: Path) -> None:
    one = (MASK == 1).astype(np.uint8)
    save(IMAGE, tmp_path / "image.png")
    for name, picture in (("grey", Image.fromarray(one * np.uint8(255))), ("bits", Image.fromarray(one > 0))):
        picture.save(tmp_path / f"{name}.png")
        (example,) = load_training([tmp_path / "image.png"], [tmp_path / f"{name}.png"], ["background", "red"])
        assert np.array_equal(example.mask_HW, one)


def test_16_bit_mask_of_other_values_is_refused(tmp_path: Path) -> None:
    path = save(MASK.astype(np.uint16) * 257 * 100, tmp_path / "wide.png")
    refused(lambda: load_mask(path), "uint16 values from 0 to 51400", "expected part ids")


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA"])
def test_colours_by_a_legend(tmp_path: Path, mode: str) -> None:
    legend = load_legend(write(LEGEND, tmp_path / "legend.json"))
    path = tmp_path / "mask.png"
    if mode == "P":
        # The palette's order is not the parts'.
        palette_png((2 - MASK).astype(np.uint8), path, COLOURS[::-1])
    else:
        save(COLOURS[MASK], path, mode)
    assert np.array_equal(load_mask(path, legend), MASK)
    assert np.array_equal(load_mask(path, legend, ["background", "green", "red"]), np.array([0, 2, 1])[MASK])


def test_what_is_transparent_was_not_painted(tmp_path: Path) -> None:
    legend = load_legend(write({"#c81e1e": "red", "#14b428": "green"}, tmp_path / "legend.json"))
    rgba = np.dstack([COLOURS[MASK] + np.uint8(9) * (MASK == 0)[..., None], np.where(MASK > 0, 255, 0)])
    path = save(rgba.astype(np.uint8), tmp_path / "mask.png")
    assert np.array_equal(load_mask(path, legend), MASK)
    half = rgba.copy()
    half[0, 0, 3] = 100
    refused(lambda: load_mask(save(half.astype(np.uint8), path), legend), "half transparent", "solid colours")


def test_array_of_colours(tmp_path: Path) -> None:
    legend = load_legend(write(LEGEND, tmp_path / "legend.json"))
    path = tmp_path / "mask.npy"
    np.save(path, COLOURS[MASK])
    assert np.array_equal(load_mask(path, legend), MASK)
    refused(lambda: load_mask(path), "is uint8 of shape (70, 90, 3), expected (height, width)")


def test_legend_by_name_or_by_colour(tmp_path: Path) -> None:
    by_colour = load_legend(write(LEGEND, tmp_path / "a.json"))
    named = {"background": [0, 0, 0], "red": "#C81E1E", "green": [20, 180, 40]}
    by_name = load_legend(write(named, tmp_path / "b.json"))
    commas = {"0,0,0": "background", "200, 30, 30": "red", "20,180,40": "green"}
    with_commas = load_legend(write(commas, tmp_path / "c.json"))
    labelmap = "# label:color_rgb:parts:actions\nred:200,30,30::\nbackground:0,0,0::\n\ngreen:20,180,40::\n"
    from_cvat = load_legend(write(labelmap, tmp_path / "labelmap.txt"))
    for other in (by_name, with_commas, from_cvat):
        assert other.names == by_colour.names and other.parts == PARTS


def test_background_of_a_legend(tmp_path: Path) -> None:
    def parts(content: dict[str, str]) -> tuple[str, ...]:
        return load_legend(write(content, tmp_path / "legend.json")).parts

    assert parts({"#000000": "void", "#ff0000": "red"}) == ("void", "red")
    assert parts({"#ff0000": "red", "#00ff00": "Background"}) == ("Background", "red")
    assert parts({"#ff0000": "red"}) == ("background", "red")
    assert parts({"#ff0000": "eye", "#00ff00": "nose", "#0000ff": "eye"}) == ("background", "eye", "nose")


def test_black_of_another_name_is_the_background(tmp_path: Path) -> None:
    legend = load_legend(write({"#000000": "void", "#c81e1e": "red", "#14b428": "green"}, tmp_path / "l.json"))
    path = save(COLOURS[MASK], tmp_path / "mask.png")
    assert np.array_equal(load_mask(path, legend, PARTS), MASK)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "is no JSON"),
        ("[]", "is empty"),
        ('["#000000"]', "expected a JSON object"),
        ('{"#00000": "red"}', 'has "#00000": "red"'),
        ('{"red": [0, 0, 256]}', "expected"),
        ('{"#000000": 1}', "expected"),
        ('{"#000000": "a", "#000000": "b"}', "#000000 is both 'a' and 'b'"),
    ],
)
def test_wrong_legends(tmp_path: Path, content: str, told: str) -> None:
    refused(lambda: load_legend(write(content, tmp_path / "legend.json")), "legend.json", told)


def test_wrong_labelmap(tmp_path: Path) -> None:
    refused(lambda: load_legend(write("red:1,2::\n", tmp_path / "l.txt")), "line 1 is 'red:1,2::'", "name:r,g,b::")
    refused(lambda: load_legend(tmp_path / "none.txt"), "cannot be read")


def test_colour_without_a_name(tmp_path: Path) -> None:
    legend = load_legend(write({"#000000": "background", "#c81e1e": "red", "#123456": "green"}, tmp_path / "l.json"))
    path = save(COLOURS[MASK], tmp_path / "mask.png")
    refused(lambda: load_mask(path, legend), "does not name: #14b428 (900 pixels)", "l.json")


def test_name_that_is_no_part(tmp_path: Path) -> None:
    legend = load_legend(write(LEGEND, tmp_path / "l.json"))
    path = save(COLOURS[MASK], tmp_path / "mask.png")
    refused(lambda: load_mask(path, legend, ["background", "red"]), "has the name 'green'", "background, red")


def test_id_without_a_name(tmp_path: Path) -> None:
    refused(lambda: read(indexed(tmp_path, parts=PARTS[:2])), "has the part ids 2, expected 0 to 1")


def test_empty_mask(tmp_path: Path) -> None:
    folder = indexed(tmp_path)
    save(np.zeros_like(MASK), folder / "masks" / "1.png")
    refused(lambda: read(folder), "1.png: is empty", "90x70 pixels are background")
    pair = [folder / "images" / "1.jpg"], [folder / "masks" / "1.png"]
    refused(lambda: load_training(*pair, PARTS), "1.png: is empty")


def test_two_palettes_that_differ(tmp_path: Path) -> None:
    """An editor that makes a palette for each picture: id 1 is red here and green there."""
    folder = folder_of(tmp_path, palette_png)
    write(list(PARTS), folder / "parts.json")
    assert len(read(folder).examples) == 2
    palette_png(np.array([0, 2, 1], np.uint8)[MASK], folder / "masks" / "1.png", COLOURS[[0, 2, 1]])
    refused(lambda: read(folder), "shows id 1 as #14b428", "as #c81e1e", "--legend")
    pairs = [[folder / kind / f"{i}.{end}" for i in range(2)] for kind, end in (("images", "jpg"), ("masks", "png"))]
    refused(lambda: load_training(*pairs, PARTS), "expected one palette for all")
    examples = read(folder, legend=write(LEGEND, tmp_path / "colours.json")).examples
    assert all(np.array_equal(example.mask_HW, MASK) for example in examples)


def test_two_legends_that_differ(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, lambda mask, path: save(COLOURS[mask], path))
    write(LEGEND, folder / "legend.json")
    write("background:0,0,0::\nred:20,180,40::\ngreen:200,30,30::\n", folder / "labelmap.txt")
    refused(lambda: read(folder), "two legends that differ", "--legend")
    assert read(folder, legend=folder / "legend.json").parts == PARTS
    write("background:0,0,0::\nred:200,30,30::\ngreen:20,180,40::\n", folder / "labelmap.txt")
    assert find_legend(folder) is not None and read(folder).parts == PARTS


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (MASK.astype(np.float32) + np.float32(0.5), "holds float32 with fractions"),
        (np.zeros((0, 4), np.uint8), "holds uint8 (0, 4)"),
        (MASK.astype(int) - 1, "from -1 to 1"),
        (MASK.astype(int) * 300, "from 0 to 600"),
        (np.array([{"a": 1}], object), "not a readable .npy"),
    ],
)
def test_wrong_arrays(tmp_path: Path, value: np.ndarray[tuple[int, ...], np.dtype[np.generic]], told: str) -> None:
    path = tmp_path / "mask.npy"
    np.save(path, value, allow_pickle=True)
    refused(lambda: load_mask(path), "mask.npy", told)


def test_other_files(tmp_path: Path) -> None:
    refused(lambda: load_mask(tmp_path / "none.npy"), "no such file")
    refused(lambda: load_mask(tmp_path / "none.png"), "no such file")
    refused(lambda: load_mask(write("no array", tmp_path / "text.npy")), "not a readable .npy")
    refused(lambda: load_mask(save(MASK, tmp_path / "m.jpg")), "is a JPEG", "save it as PNG")
    refused(lambda: load_mask(save(COLOURS[MASK], tmp_path / "m.png")), "PNG of mode RGB", "--legend")
    np.savez(tmp_path / "m.npz", a=MASK)
    (tmp_path / "m.npz").rename(tmp_path / "packed.npy")
    refused(lambda: load_mask(tmp_path / "packed.npy"), "several arrays")


def test_parts_json_and_parts_asked_for(tmp_path: Path) -> None:
    folder = indexed(tmp_path)
    assert read(folder, PARTS).parts == PARTS
    turned = read(folder, ["background", "green", "red"]).examples[0]
    assert np.array_equal(turned.mask_HW, np.array([0, 2, 1])[paint()[1]])
    refused(lambda: read(folder, ["background", "red"]), "has the name 'green'", "background, red")
    (folder / "parts.json").unlink()
    refused(lambda: read(folder), "names no parts", "--parts")
    assert read(folder, PARTS).parts == PARTS
    write({"0": "background"}, folder / "parts.json")
    refused(lambda: read(folder), "expected a JSON list of part names")
    (folder / "parts.json").write_text(json.dumps(list(PARTS))[:-3])
    refused(lambda: read(folder), "cannot be read")


def test_a_legend_names_the_parts_of_files_named_one_by_one(tmp_path: Path) -> None:
    image, mask = paint()
    legend = write(LEGEND, tmp_path / "legend.json")
    files = ["--image", str(save(image, tmp_path / "a.png")), "--mask", str(save(COLOURS[mask], tmp_path / "m.png"))]
    arguments = command.parser().parse_args([*files, "--legend", str(legend), "--out", str(tmp_path / "out")])
    found = command._training(arguments)
    assert found.parts == PARTS and np.array_equal(found.examples[0].mask_HW, mask)


@pytest.mark.parametrize("kind", ["numbers", "names", "colours", "layers"])
def test_a_list_without_the_background_is_refused_wherever_it_would_be_wrong(tmp_path: Path, kind: str) -> None:
    """Its first name would be taken for the background, although the part of that name is painted."""
    image, mask = paint()
    save(image, tmp_path / "car.jpg")
    if kind == "layers":
        for index in (1, 2):
            save((mask == index).astype(np.uint8) * np.uint8(255), tmp_path / f"car_{PARTS[index]}.png")
    else:
        save(COLOURS[mask] if kind == "colours" else mask, tmp_path / "car_mask.png")
    if kind == "names":
        write(list(PARTS), tmp_path / "parts.json")
    if kind == "colours":
        write(LEGEND, tmp_path / "legend.json")
    told = "of which the first, 'red', is the background" if kind == "numbers" else "give --parts background red green"
    refused(lambda: read(tmp_path, PARTS[1:]), told)
    refused(lambda: read(tmp_path, ["red", "green", "background"]), "expected the background first")
    assert np.array_equal(read(tmp_path, PARTS).examples[0].mask_HW, mask)


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_backgrounds_and_void_among_the_names_of_numbers(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    image, mask = paint()
    mask[:5] = 3
    mask[-5:] = 4
    save(image, tmp_path / "car.jpg")
    save(mask, tmp_path / "car_mask.png")
    names = [*PARTS, "_background_", "ignore", "blue"]
    rows = "".join(f"{value},{name}\n" for value, name in enumerate(names))
    write(names, tmp_path / "parts.json") if kind == "json" else write(
        f"Value,Class\n{rows}", tmp_path / "_classes.csv"
    )
    expected = np.array([0, 1, 2, 0, 255], np.uint8)[mask]
    for parts in (None, PARTS):
        found = read(tmp_path, parts)
        assert found.parts == PARTS and np.array_equal(found.examples[0].mask_HW, expected)
    assert "nothing is painted as 'blue', left out" in caplog.text


@pytest.mark.parametrize("name", ["car.jpg.png", "car_mask.tif", "car-GT.bmp"])
def test_masks_as_other_tools_call_them(tmp_path: Path, name: str) -> None:
    image, mask = paint()
    save(image, tmp_path / "car.jpg")
    save(mask, tmp_path / name)
    assert np.array_equal(read(tmp_path, PARTS).examples[0].mask_HW, mask)


def test_parts_that_nobody_painted_are_asked_about_in_words_that_apply(tmp_path: Path) -> None:
    """Numbers with a gap and only the person's list; and the same where a file names the numbers."""
    image, mask = paint()
    gap = np.array([0, 1, 3], np.uint8)[mask]
    files = [save(image, tmp_path / "car.jpg")], [save(gap, tmp_path / "car_mask.png")]
    names = ["background", "red", "light", "green"]
    refused(lambda: load_training(*files, names), "no pixel of 'light' (id 2)", "into parts.json", "without --parts")
    write(names, tmp_path / "parts.json")
    found = read(tmp_path)
    assert found.parts == PARTS and np.array_equal(found.examples[0].mask_HW, mask)
    refused(lambda: check_painted(read(tmp_path, names), "data"), "give --parts background red green")
