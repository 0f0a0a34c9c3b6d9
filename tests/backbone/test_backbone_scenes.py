"""PartScenes: what a name draws never changes, and its masks, captions and splits are what they say."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from slime_backbone import bounds
from slime_backbone.dataset import write_split
from slime_backbone.scene import COUNTS, KINDS, MIN_PART_SHARE, SPLITS, Scene, colourings, parts_of, scene

# What was trained on is drawn again from its name: these may not change, whatever numpy or Pillow is installed.
RECORDED = {
    ("car", "backbone", "0"): "bf576ad635ead2477819e495e44a9b4d51b6f9463724cff516845bd3deb97d1c",
    ("car", "backbone", "7"): "84f4cae7e0dcfc130bd2a58a4529b573e8a755c9657465ae231b3056aa597e13",
    ("car", "train-1", "0"): "b107f99cc4779303f9db448344dcfd2ff5dfa68049f4825806b40c56d086232a",
    ("car", "test", "1"): "2db9c7920b7e80034d92c619762acf81a7647a64cda5e30e1cfe8ec0c622af1f",
    ("horse", "backbone", "0"): "a15b58b36f4a2b70d25d5348412e2663649ad9a352e1d1f9fd532ce9e9f4ef30",
    ("horse", "backbone", "7"): "ad91ba213f6c5064a8a310bb2446bb105f30c2e9f2f2e1a08c0c9bc03a482009",
    ("horse", "train-1", "0"): "8cfcdb535ca6850c2ad671824fdbb6133d77741bc00198dd4bf0c7e65e1b4faa",
    ("horse", "test", "1"): "9dbf9ebcd8c8b547511d99ce141e22e897a30602200b9028134e20cf7eb3e896",
    ("face", "backbone", "0"): "dca9ac7fb90bcf52e15e3d37bc7ea48bb4d9bccec37debce071bfed8eb0f82e7",
    ("face", "backbone", "7"): "63aa05d0d920b9e2755c3cd24905f8e4639055b63f6ffa6f6d9a7e459535af9d",
    ("face", "train-1", "0"): "9bc7da725521513434920cd9b7591dfff38829e0f4cb47f4b538b83b4c830f7e",
    ("face", "test", "1"): "569b3ba1aac15443a5d9fa6535f7a5c8ea6ba97975e1c000617d6236212dc0aa",
}


def digest(one: Scene) -> str:
    return hashlib.sha256(one.image.tobytes() + one.mask.tobytes() + one.caption.encode()).hexdigest()


@pytest.mark.parametrize("name", RECORDED, ids="-".join)
def test_a_name_draws_the_same_bytes_for_ever(name: tuple[str, str, str]) -> None:
    kind, split, index = name
    assert digest(scene(kind, split, int(index))) == RECORDED[name]


def test_what_was_drawn_before_does_not_matter() -> None:
    first = digest(scene("car", "test", 3, size=32))
    scene("horse", "train-1", 0, size=32)
    assert digest(scene("car", "test", 3, size=32)) == first


@pytest.mark.parametrize("kind", KINDS)
def test_splits_have_no_scene_in_common(kind: str) -> None:
    drawn = {
        (split, index): digest(scene(kind, split, index, size=32))
        for split in SPLITS
        for index in range(min(COUNTS.get(split, 20), 20))
    }
    assert len(set(drawn.values())) == len(drawn)
    assert len(set(SPLITS.values())) == len(SPLITS)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_hold_indices_of_the_parts(kind: str) -> None:
    for index in range(8):
        one = scene(kind, "test", index, size=64)
        assert one.parts == parts_of(kind) and one.parts[0] == "background"
        assert one.mask.dtype == np.uint8 and one.mask.shape == (64, 64)
        assert one.image.dtype == np.uint8 and one.image.shape == (64, 64, 3)
        assert one.mask.max() < len(one.parts)


@pytest.mark.parametrize("kind", KINDS)
def test_the_one_training_image_shows_every_part(kind: str) -> None:
    mask = scene(kind, "train-1", 0).mask
    shares = np.bincount(mask.ravel(), minlength=len(parts_of(kind))) / mask.size
    assert shares.min() >= MIN_PART_SHARE


def test_part_lists_are_the_papers() -> None:
    assert parts_of("car") == ("background", "body", "light", "plate", "wheel", "window")
    assert parts_of("horse") == ("background", "head", "leg", "neck+torso", "tail")
    assert set(parts_of("face")[1:]) == {"face", "cloth", "eyebrow", "ear", "eye", "hair", "mouth", "neck", "nose"}


@pytest.mark.parametrize("kind", KINDS)
def test_captions_tell_the_truth_about_absent_parts(kind: str) -> None:
    for index in range(12):
        one = scene(kind, "backbone", index, size=64)
        seen = {one.parts[i] for i in np.unique(one.mask)}
        said = one.caption.split(" , ")
        assert said[0] == f"a {kind}"
        for part in (phrase.split()[-1] for phrase in said[1:] if not phrase.startswith("on ")):
            assert (f"no {part}" in said) == (part not in seen)


@pytest.mark.parametrize("kind", KINDS)
def test_ceiling_is_high_and_colours_alone_are_not_enough(kind: str) -> None:
    """On a few of the scenes; `scenes.py --floor-ceiling` measures all."""
    assert bounds.ceiling(kind, count=8).mean >= 80
    assert bounds.nearest_colour(kind, count=4).mean <= 35


def test_a_split_written_twice_is_the_same(tmp_path: Path) -> None:
    first, second = (write_split(tmp_path / name, "horse", "validation") for name in ("a", "b"))
    files = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    assert len(files) == 2 * COUNTS["validation"] + 2
    for name in files:
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_written_scenes_are_the_drawn_ones(tmp_path: Path) -> None:
    folder = write_split(tmp_path, "face", "train-1")
    drawn = scene("face", "train-1", 0)
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "masks" / "000.png")), drawn.mask)
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "images" / "000.png")), drawn.image)
    assert json.loads((folder / "parts.json").read_text()) == list(parts_of("face"))


def test_scenes_with_nothing_to_do_says_so(scenes_script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        scenes_script.main([])
    assert left.value.code == 2
    assert "nothing to do" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_a_drawing_in_other_colours_is_the_same_drawing(kind: str) -> None:
    first, second, third = colourings(kind, 3, 3)
    np.testing.assert_array_equal(first.image, scene(kind, "backbone", 3).image)
    assert len({first.caption, second.caption, third.caption}) == 3
    for other in (second, third):
        np.testing.assert_array_equal(first.mask, other.mask)
        changed = np.abs(first.image.astype(int) - other.image).sum(-1) > 60
        assert changed[first.mask > 0].mean() > 0.4 and changed[first.mask == 0].mean() < 0.02
        assert not any(said.startswith("on ") for said in other.caption.split(" , "))
