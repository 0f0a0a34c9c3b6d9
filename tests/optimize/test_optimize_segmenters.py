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
from slime_optimize.method.seeds import sampled_noise
from slime_optimize.old_names import OLD_NAMES
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


OLD_WORDS = {
    "guide": ("edge_tolerance", 0.25),
    "guidance": ("guidance_scale", 100.0),
    "more_t": ("extra_timesteps", [20, 200]),
    "draws": ("noise_samples", 1),
    "mirrored": ("flip_average", True),
    "suppress": ("suppress_first_part", True),
    "turns": ("part_schedule", "epoch"),
    "view_uses": ("steps_per_view", 3),
    "recolour": ("recolour_probability", 0.5),
    "class_weight": ("class_weight_power", 0.75),
}


def in_old_words(values: dict[str, Any]) -> dict[str, Any]:
    """Settings as they were written before they got their present names."""
    old = {new: name for name, (new, _) in OLD_WORDS.items()}
    words = {old.get(name, name): value for name, value in values.items()}
    return words | {"encoder": "kl"} if values.get("encoder") == "vae" else words


def test_segmenters_in_old_words_are_read(segmenter: Segmenter, tmp_path: Path) -> None:
    settings = Settings(t_test=50).changed(dict(OLD_WORDS.values()))
    assert all(
        getattr(settings, new) != getattr(Settings(), new) for new, _ in OLD_WORDS.values() if new != "noise_samples"
    )
    made = replace(segmenter, settings=settings)
    made.save(tmp_path)
    facts = json.loads((tmp_path / "segmenter.json").read_text())
    facts["settings"] = in_old_words(facts["settings"])
    assert facts["settings"].keys() >= OLD_WORDS.keys() and facts["settings"]["encoder"] == "kl"
    (tmp_path / "segmenter.json").write_text(json.dumps(facts))
    assert Segmenter.load(tmp_path).settings == settings and Segmenter.load(tmp_path).hash == made.hash


def test_every_old_name_is_in_the_table() -> None:
    assert {name: new for name, (new, _) in OLD_WORDS.items()} == OLD_NAMES


def test_recommended_settings_in_old_words_are_read() -> None:
    told = {"every": {"guide": 0.3, "encoder": "kl"}, "best": {"recolour": 0.1}}
    settings = preset("best", told)
    assert (settings.edge_tolerance, settings.recolour_probability, settings.encoder) == (0.3, 0.1, "vae")


def test_a_setting_under_both_names_is_refused() -> None:
    with pytest.raises(
        InputError, match="got guide and edge_tolerance, which are one setting, expected edge_tolerance"
    ):
        preset("best", {"every": {"guide": 0.3, "edge_tolerance": 0.2}})
    with pytest.raises(InputError, match="got list, expected a JSON object of settings by name"):
        preset("best", {"every": [0.3]})


def test_noise_for_more_samples_is_drawn_again_from_the_seed(segmenter: Segmenter) -> None:
    made = replace(segmenter, noise=sampled_noise(16, segmenter.seed))
    more = made.at_test_time(["noise_samples=3", "threshold=0.1"])
    assert torch.equal(more.noise, sampled_noise(16, segmenter.seed, 3)) and more.settings.threshold == 0.1
    assert torch.equal(more.at_test_time(["noise_samples=1"]).noise, made.noise)
    assert more.hash != made.hash and torch.equal(more.text_embedding, made.text_embedding)


def test_noise_that_is_not_the_seeds_is_kept(segmenter: Segmenter) -> None:
    with pytest.raises(InputError, match="no more of it can be drawn; expected 1 to 1") as told:
        segmenter.at_test_time(["noise_samples=2"])
    assert len(str(told.value).splitlines()) == 1
    assert torch.equal(segmenter.at_test_time(["threshold=0.1"]).noise, segmenter.noise)
