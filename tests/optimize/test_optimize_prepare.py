"""optimize/prepare.py on tiny data sets in the real ones' file formats: parts, rules, splits and mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from datasets_on_disk import Annotated, noise, write_annotation, write_face, write_mapping, write_voc_split
from painting import Main
from slime_optimize.data.annotations import dataset, load_example
from slime_optimize.data.datasets import celebamask, pascal_part, published
from slime_optimize.data.datasets.pascal import KINDS
from slime_optimize.errors import InputError

CAR = Annotated(
    kind="car",
    box=(20, 100, 30, 150),
    parts=(
        ("wheel_1", (80, 100, 40, 60)),
        ("window_12", (25, 45, 60, 120)),
        ("leftside", (20, 100, 30, 150)),
        ("fliplate", (70, 75, 130, 140)),
        ("headlight_2", (60, 65, 140, 150)),
        ("rightmirror", (45, 50, 50, 55)),
    ),
)


def fails(prepare: Main, words: list[str], capsys: pytest.CaptureFixture[str], expected: str) -> None:
    """Exit code 2 and one line on stderr."""
    assert prepare([*words, "--quiet"]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and len(shown.err.splitlines()) == 1
    assert shown.err.startswith("error: ") and expected in shown.err


@pytest.fixture
def pascal(tmp_path: Path) -> Path:
    folder = tmp_path / "pascal"
    write_annotation(folder, "2008_000001", [CAR, Annotated(kind="person", box=(150, 190, 200, 240))])
    return folder


def masks(folder: Path) -> dict[str, npt.NDArray[np.uint8]]:
    """By name, each read back as evaluate.py does."""
    parts, pairs = dataset(folder)
    return {image.stem: load_example(image, mask, parts).mask_HW for image, mask in pairs}


def test_car_is_cropped_and_merged(prepare: Main, pascal: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "car"
    assert prepare(["pascal-part", str(pascal), "--kind", "car", "--out", str(out)]) == 0
    ((name, mask),) = masks(out).items()
    assert name == "2008_000001_1" and mask.shape == (80, 120)
    expected = np.ones((80, 120), np.uint8)  # the body, mirror included, under everything else
    expected[40:45, 110:120] = 2
    expected[50:55, 100:110] = 3
    expected[60:80, 10:30] = 4
    expected[5:25, 30:90] = 5
    np.testing.assert_array_equal(mask, expected)
    assert json.loads((out / "parts.json").read_text()) == ["background", "body", "light", "plate", "wheel", "window"]
    with Image.open(pascal / "VOCdevkit" / "VOC2010" / "JPEGImages" / "2008_000001.jpg") as whole:
        crop = np.asarray(Image.open(out / "images" / f"{name}.png"))
        np.testing.assert_array_equal(crop, np.asarray(whole)[20:100, 30:150])
    about = json.loads((out / "prepared.json").read_text())
    assert (about["dataset"], about["kind"], about["images"]) == ("PASCAL-Part", "car", 1)


def test_horse_parts(tmp_path: Path) -> None:
    names = ["head", "leye", "reye", "lear", "rear", "muzzle", "neck", "torso", "tail"]
    names += [f"{side}{end}{piece}" for side in "lr" for end in "fb" for piece in ("uleg", "lleg", "ho")]
    parts = [(name, (40, 90, 4 * index, 4 * index + 4)) for index, name in enumerate(names)]
    write_annotation(tmp_path, "h", [Annotated(kind="horse", box=(40, 90, 0, 100), parts=parts)])
    plan = pascal_part(tmp_path, "horse")
    (example,) = plan.items[0]().examples
    assert plan.parts == ("background", "head", "leg", "neck+torso", "tail")
    assert example.mask_HW[0, ::4].tolist() == [1] * 6 + [3, 3, 4] + [2] * 12 + [0] * 4


def test_rules_of_size_and_overlap(prepare: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = (("frontside", (0, 199, 0, 299)),)
    # 50 x 50 passes, 49 x 51 does not; 5 % of IoU with a chair leaves a car out, a little less does not.
    write_annotation(tmp_path, "a", [Annotated(kind="car", box=(0, 50, 0, 50), parts=body)])
    write_annotation(tmp_path, "b", [Annotated(kind="car", box=(0, 49, 0, 51), parts=body)])
    for name, left in (("c", 90), ("d", 91)):  # columns 90 to 99 of 190 are 5.3 %, 91 to 99 of 191 are 4.7 %
        car = Annotated(kind="car", box=(0, 100, 0, 100), parts=body)
        write_annotation(tmp_path, name, [car, Annotated(kind="chair", box=(0, 100, left, left + 100))])
    write_annotation(tmp_path, "e", [Annotated(kind="car", box=(0, 100, 0, 100))])
    write_annotation(tmp_path, "f", [Annotated(kind="horse", box=(0, 31, 0, 33), parts=(("head", (0, 9, 0, 9)),))])
    assert prepare(["pascal-part", str(tmp_path), "--kind", "car", "--out", str(tmp_path / "out")]) == 0
    assert sorted(masks(tmp_path / "out")) == ["a_1", "d_1"]
    told = capsys.readouterr().out
    for reason in ("2 images", "1 too small", "1 overlap another object", "1 without any of the parts"):
        assert reason in told
    assert pascal_part(tmp_path, "horse").items[5]().left_out == {"too small": 1}


def test_two_cars_make_two_crops_and_show_each_others_parts(tmp_path: Path) -> None:
    near = Annotated(kind="car", box=(98, 198, 98, 198), parts=(("backside", (98, 198, 98, 198)),))
    far = Annotated(kind="car", box=(0, 100, 0, 100), parts=(("wheel_3", (50, 60, 0, 20)),))
    write_annotation(tmp_path, "two", [far, Annotated(kind="sofa", box=(0, 40, 250, 290)), near])
    examples = pascal_part(tmp_path, "car").items[0]().examples
    assert [example.name for example in examples] == ["two_1", "two_3"]
    assert examples[0].mask_HW[98:, 98:].tolist() == [[1, 1], [1, 1]]


def test_voc_splits(pascal: Path, tmp_path: Path) -> None:
    write_annotation(pascal, "2008_000002", [CAR])
    write_voc_split(pascal, "car_val", ["2008_000001 -1", "2008_000002  1"])
    assert len(pascal_part(pascal, "car").items) == 2
    (read,) = [item() for item in pascal_part(pascal, "car", split="val").items]
    assert [example.name for example in read.examples] == ["2008_000002_1"]
    listed = tmp_path / "some.txt"
    listed.write_text("2008_000001\n\n")
    assert len(pascal_part(pascal, "car", split=str(listed)).items) == 1


def test_some_parts_in_another_order(pascal: Path) -> None:
    plan = pascal_part(pascal, "car", parts=["background", "window", "wheel"])
    (example,) = plan.items[0]().examples
    assert plan.parts == ("background", "window", "wheel")
    assert np.unique(example.mask_HW).tolist() == [0, 1, 2]
    assert example.mask_HW[70, 20] == 2 and example.mask_HW[10, 50] == 1
    assert pascal_part(pascal, "car", parts=["background", "body"]).items[0]().examples[0].mask_HW[70, 20] == 0


def test_every_part_of_both_kinds_is_merged_once() -> None:
    for kind in KINDS.values():
        names = [name for merged in kind.merged.values() for name in merged]
        assert len(names) == len(set(names))
    assert len(KINDS["horse"].merged["leg"]) == 12


FACE = (
    ("skin", (4, 28, 4, 28)),
    ("l_eye", (8, 10, 8, 12)),
    ("r_eye", (8, 10, 18, 22)),
    ("l_brow", (6, 7, 8, 12)),
    ("mouth", (20, 24, 10, 20)),
    ("u_lip", (20, 21, 10, 20)),
    ("hair", (0, 7, 0, 32)),
    ("eye_g", (7, 12, 6, 24)),
    ("hat", (0, 2, 0, 32)),
)


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_faces_are_merged_and_reduced(prepare: Main, tmp_path: Path, mode: str) -> None:
    write_face(tmp_path, 2017, FACE, mode=mode)
    out = tmp_path / "out"
    assert prepare(["celebamask", str(tmp_path), "--out", str(out), "--quiet"]) == 0
    ((name, mask),) = masks(out).items()
    parts = json.loads((out / "parts.json").read_text())
    assert name == "02017" and mask.shape == (32, 32)
    seen = {parts[mask[y, x]] for y, x in ((9, 9), (9, 20))}
    assert seen == {"eye"}, "left and right, and under the glasses"
    assert [parts[mask[y, x]] for y, x in ((22, 15), (20, 15), (15, 15), (6, 9), (0, 0), (30, 30))] == [
        "mouth",
        "mouth",
        "face",
        "hair",  # over the eyebrow, and over what a hat covers
        "hair",
        "background",
    ]
    with Image.open(out / "images" / "02017.png") as image, Image.open(tmp_path / "CelebA-HQ-img" / "2017.jpg") as big:
        assert image.size == (32, 32)
        difference = np.asarray(image, int) - np.asarray(big.resize((32, 32), Image.Resampling.BILINEAR), int)
        assert not difference.any()


def test_celeba_splits(tmp_path: Path) -> None:
    origins = [(0, 162770), (1, 162771), (2, 182637), (3, 182638), (4, 7)]
    for number, _ in origins:
        write_face(tmp_path, number, FACE)
    write_face(tmp_path, 5, ())
    with pytest.raises(InputError, match="mapping"):
        celebamask(tmp_path, split="test")
    write_mapping(tmp_path, origins)

    def names(split: str | None) -> list[str]:
        return [example.name for item in celebamask(tmp_path, split=split).items for example in item().examples]

    assert names("train") == ["00000", "00004"]
    assert names("val") == ["00001", "00002"]
    assert names("test") == ["00003"]
    assert names(None) == ["00000", "00001", "00002", "00003", "00004"]
    listed = tmp_path / "faces.txt"
    listed.write_text("182638.jpg\n4.jpg\n")
    assert names(str(listed)) == ["00003", "00004"]
    listed.write_text("999999.jpg\n")
    with pytest.raises(InputError, match="999999 is no image of CelebA-HQ"):
        names(str(listed))


def test_face_without_masks_is_counted(tmp_path: Path) -> None:
    write_face(tmp_path, 1, ())
    write_face(tmp_path, 2, (("hat", (0, 9, 0, 9)),))
    write_face(tmp_path, 3, (("nose", (0, 9, 0, 9)),))
    reads = [item() for item in celebamask(tmp_path, parts=["background", "hair"]).items]
    assert [dict(read.left_out) for read in reads] == [
        {"without a mask": 1},
        {"without a mask": 1},
        {"without any of the parts": 1},
    ]


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
def test_published_layout(prepare: Main, tmp_path: Path, dtype: type) -> None:
    folder = tmp_path / "car" / "train_1"
    folder.mkdir(parents=True)
    mask = np.arange(12, dtype=dtype).reshape(3, 4) % 6
    Image.fromarray(noise((3, 4))).save(folder / "one.png")
    np.save(folder / "one.npy", mask)
    words = ["published", str(tmp_path / "car"), "--kind", "car", "--split", "train_1", "--out", str(tmp_path / "out")]
    assert prepare(words) == 0
    np.testing.assert_array_equal(masks(tmp_path / "out")["one"], mask)
    assert dataset(tmp_path / "out")[0] == ("background", "body", "light", "plate", "wheel", "window")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "images" / "one.png")), noise((3, 4)))


def test_published_mistakes(tmp_path: Path) -> None:
    Image.fromarray(noise((3, 4))).save(tmp_path / "one.png")

    def read(mask: object) -> None:
        np.save(tmp_path / "one.npy", np.asarray(mask), allow_pickle=True)
        published(tmp_path, "car").items[0]()

    with pytest.raises(InputError, match="no such file, expected one beside"):
        published(tmp_path, "car").items[0]()
    with pytest.raises(InputError, match=r"is \(4, 3\), expected \(3, 4\)"):
        read(np.zeros((4, 3)))
    with pytest.raises(InputError, match="part ids 6"):
        read(np.full((3, 4), 6))
    for strange in (np.full((3, 4), 0.5), np.full((3, 4), -1), np.full((3, 4), np.nan)):
        with pytest.raises(InputError, match="no part numbers"):
            read(strange)
    with pytest.raises(InputError, match="not a readable"):
        read([[None] * 4] * 3)
    with pytest.raises(InputError, match="or --parts with the names"):
        published(tmp_path)


def test_mistakes(prepare: Main, pascal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "out")]
    car = ["pascal-part", str(pascal), "--kind", "car"]
    empty = tmp_path / "empty"
    empty.mkdir()
    fails(prepare, ["celebamask", str(tmp_path / "no"), *out], capsys, "no such folder")
    fails(prepare, ["celebamask", str(empty), *out], capsys, "CelebA-HQ-img and CelebAMask-HQ-mask-anno")
    fails(prepare, ["pascal-part", str(empty), "--kind", "car", *out], capsys, "Annotations_Part of PASCAL-Part")
    fails(prepare, ["published", str(pascal), "--kind", "car", *out], capsys, "--split is one of VOCdevkit, trainval")
    fails(prepare, [*car, "--split", "test", *out], capsys, "no ImageSets/Main/car_test.txt")
    fails(prepare, [*car, "--parts", "background", "hoof", *out], capsys, "expected background first and then some")
    fails(prepare, [*car, "--out", str(pascal)], capsys, "is there already")
    fails(prepare, [*car[:-1], "horse", *out], capsys, "nothing is left to write")
    (pascal / "trainval" / "Annotations_Part" / "2008_000002.mat").write_bytes(b"MATLAB 5.0 no more")
    fails(prepare, [*car, *out], capsys, "2008_000002.mat: not an annotation")
    write_annotation(pascal, "2008_000002", [Annotated(kind="car", box=CAR.box, parts=(("spoiler", CAR.box),))])
    fails(prepare, [*car, *out], capsys, "has the part 'spoiler'")
    write_annotation(pascal, "2008_000002", [CAR])
    Image.fromarray(noise((20, 20))).save(pascal / "VOCdevkit" / "VOC2010" / "JPEGImages" / "2008_000002.jpg")
    fails(prepare, [*car, *out], capsys, "the image (20, 20) pixels")
    (pascal / "VOCdevkit" / "VOC2010" / "JPEGImages" / "2008_000002.jpg").unlink()
    fails(prepare, [*car, *out], capsys, "2008_000002.jpg: cannot be read")
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_folder_of_the_same_image_twice_is_refused(
    prepare: Main, pascal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = tmp_path / "twice.txt"
    listed.write_text("2008_000001\n2008_000001\n")
    words = ["pascal-part", str(pascal), "--kind", "car", "--split", str(listed), "--out", str(tmp_path / "out")]
    fails(prepare, words, capsys, "two images are called 2008_000001_1")
