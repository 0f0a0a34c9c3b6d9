"""Segmenters and settings survive a round trip through their files; damaged ones are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from painting import paint
from slime_optimize import InputError, Segmenter, Settings, preset
from slime_optimize.picture import colour_mask, overlay, palette, sheet


@pytest.fixture
def segmenter() -> Segmenter:
    chance = torch.Generator().manual_seed(0)
    return Segmenter(
        text_embedding=torch.randn(1, 77, 8, generator=chance),
        noise=torch.randn(1, 4, 16, 16, generator=chance),
        parts=("background", "wheel"),
        colours=palette(2),
        backbone_id="embedded",
        backbone_hash="f" * 64,
        image_size=64,
        latent_size=16,
        settings=Settings(t_test=50, crop=(0.8, 1.0)),
        preset="paper",
        seed=3,
        training_images=("a" * 64,),
        metrics={"losses": {"ce": 1.0}},
        versions={"torch": "2"},
        created="2026-01-01T00:00:00+00:00",
    )


def test_round_trip(segmenter: Segmenter, tmp_path: Path) -> None:
    segmenter.save(tmp_path / "new" / "folder")
    back = Segmenter.load(tmp_path / "new" / "folder")
    assert torch.equal(back.text_embedding, segmenter.text_embedding)
    assert torch.equal(back.noise, segmenter.noise)
    assert back.embeddings.shape == (1, 8)
    same = replace(back, text_embedding=segmenter.text_embedding, noise=segmenter.noise)
    assert same == segmenter
    assert back.hash == segmenter.hash
    written = sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    assert written == ["segmenter.json", "segmenter.safetensors"]


def test_hash_follows_what_decides_the_masks(segmenter: Segmenter) -> None:
    assert replace(segmenter, created="later").hash == segmenter.hash
    assert replace(segmenter, settings=Settings(t_test=51)).hash != segmenter.hash
    assert replace(segmenter, noise=-segmenter.noise).hash != segmenter.hash


def test_wrong_shapes_are_refused(segmenter: Segmenter) -> None:
    with pytest.raises(InputError, match=r"noise: got \(1, 4, 16, 16\), expected \(1, 4, 32, 32\)"):
        replace(segmenter, latent_size=32)
    with pytest.raises(InputError, match="text_embedding"):
        replace(segmenter, text_embedding=torch.zeros(77, 8))
    with pytest.raises(InputError, match="colours"):
        replace(segmenter, colours=())


def test_damaged_folders_are_refused(segmenter: Segmenter, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no segmenter\.json"):
        Segmenter.load(tmp_path)
    segmenter.save(tmp_path)
    facts = json.loads((tmp_path / "segmenter.json").read_text())
    for spoilt, line in (("{", "not readable JSON"), ("[]", "got format list"), ('{"format": 9}', "got format 9")):
        (tmp_path / "segmenter.json").write_text(spoilt)
        with pytest.raises(InputError, match=line):
            Segmenter.load(tmp_path)
    (tmp_path / "segmenter.json").write_text(json.dumps({k: v for k, v in facts.items() if k != "seed"}))
    with pytest.raises(InputError, match="damaged"):
        Segmenter.load(tmp_path)
    (tmp_path / "segmenter.json").write_text(json.dumps(facts))
    (tmp_path / "segmenter.safetensors").write_bytes(b"not tensors")
    with pytest.raises(InputError, match="damaged"):
        Segmenter.load(tmp_path)


def test_settings_round_trip() -> None:
    settings = Settings(steps=3, t_opt=(1, 2), layers=preset("paper").layers)
    assert Settings().changed(json.loads(json.dumps(settings.as_json()))) == settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0.0),
        ("epochs", 0),
        ("steps", 0),
        ("batch_size", 0),
        ("t_test", 1000),
        ("t_opt", (100, 5)),
        ("alpha", -1),
        ("beta", -1),
        ("threshold", 1.5),
        ("cross_entropy", "both"),
        ("flip", 2),
        ("crop", (0.0, 1.0)),
        ("rotation", -1),
        ("blur", (2, 1)),
        ("prompt_word", " "),
        ("t_opt", [1, 2, 3]),
        ("learning_rate", "fast"),
        ("layers", ["up"]),
    ],
)
def test_settings_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(InputError) as caught:
        Settings().changed({name: value})
    assert "\n" not in str(caught.value)


def test_steps_of_a_run() -> None:
    assert Settings().total_steps(1) == 200
    assert Settings().total_steps(10) == 2000
    assert Settings(batch_size=4).total_steps(1) == 50
    assert Settings(steps=7).total_steps(10) == 7


def test_unknown_preset() -> None:
    with pytest.raises(InputError, match="preset 'fast': unknown"):
        preset("fast")


def test_colours_are_distinct_and_stay_the_same() -> None:
    assert len(set(palette(77))) == 77
    assert palette(77)[:5] == palette(5)


def test_pictures() -> None:
    image, mask = paint()
    colours = palette(3)
    laid = overlay(image, mask, colours)
    assert (laid[mask == 0] == image[mask == 0]).all()
    assert (colour_mask(mask, colours)[20, 20] == colours[1]).all()
    picture = sheet([(image, laid), (image, laid)], ("image", "prediction"), ("background", "a", "b"), colours, 64)
    assert picture.mode == "RGB" and picture.width == 2 * 72 + 8 and picture.height > 2 * 72
