"""The small Stable Diffusion has the big one's shape, knows every word, and loads as any other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

from painting import ROOT
from slime_backbone.diffusion import tokens
from slime_backbone.models import FILLER, LATENT, LENGTH, build_scheduler, build_tokenizer, build_unet
from slime_backbone.raster import COLOURS, SKIN
from slime_backbone.saving import Pipeline, pipeline_of, save_pipeline
from slime_backbone.scene import KINDS, parts_of, scene
from slime_optimize.backbone import load_backbone

WEIGHTS = ROOT / "backbone" / "weights"


@pytest.fixture(scope="module")
def pipeline(state: Path) -> Pipeline:
    return pipeline_of(state)


def words() -> set[str]:
    """All that captions are made of, but for the `+` of `neck+torso`."""
    parts = {piece for kind in KINDS for part in parts_of(kind)[1:] for piece in part.split("+")}
    return parts | set(KINDS) | set(COLOURS) | set(SKIN) | {"a", "on", "no", ",", FILLER}


def test_every_word_is_one_token(tokenizer: CLIPTokenizer) -> None:
    lengths = {word: len(tokenizer(word).input_ids) - 2 for word in words()}
    assert set(lengths.values()) == {1}, {word: n for word, n in lengths.items() if n > 1}


@pytest.mark.parametrize("kind", KINDS)
def test_captions_fit_into_the_tokens_and_come_back(kind: str, tokenizer: CLIPTokenizer) -> None:
    for index in range(1000, 1010):
        caption = scene(kind, "backbone", index, size=16).caption
        ids = tokenizer(caption).input_ids
        assert len(ids) <= LENGTH
        decoded = tokenizer.decode(ids, skip_special_tokens=True)
        assert "".join(decoded.split()) == "".join(caption.split())


def test_longest_possible_caption_fits(tokenizer: CLIPTokenizer) -> None:
    longest = " , ".join(["a face", *(f"purple {part}" for part in parts_of("face")[1:]), "on purple"])
    assert len(tokenizer(longest).input_ids) <= LENGTH


def test_a_tokenizer_in_the_folder_is_taken_as_it_is(captions: list[str], tmp_path: Path) -> None:
    first = build_tokenizer(captions, tmp_path)
    again = build_tokenizer(["quite other words"], tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert first.get_vocab() == again.get_vocab() == loaded.get_vocab()
    expected = tokens(first, captions[:20])
    assert expected == tokens(again, captions[:20]) == tokens(loaded, captions[:20])
    assert {len(row) for row in expected} == {LENGTH}


def test_a_filled_caption_ends_in_fillers(tokenizer: CLIPTokenizer) -> None:
    (padded,), (filled,) = (tokens(tokenizer, ["a car , red body"], way) for way in (False, True))
    said = 1 + len(["a", "car", ",", "red", "body"])
    assert len(filled) == LENGTH and filled[:said] == padded[:said]
    assert set(filled[said:-1]) == {tokenizer.convert_tokens_to_ids(FILLER + "</w>")}
    assert set(padded[said:]) == {filled[-1]} == {tokenizer.eos_token_id}


def test_unet_has_stable_diffusions_blocks_and_few_parameters() -> None:
    unet = build_unet()
    assert 5e6 <= sum(p.numel() for p in unet.parameters()) <= 8e6
    assert sum(name.endswith("attn2") for name, _ in unet.named_modules()) == 16
    assert tuple(unet.config.down_block_types) == ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    assert tuple(unet.config.up_block_types) == ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    assert unet.config.use_linear_projection and unet.config.sample_size == LATENT


def test_scheduler_has_stable_diffusions_noise() -> None:
    config = build_scheduler().config
    assert (config.beta_start, config.beta_end, config.beta_schedule) == (0.00085, 0.012, "scaled_linear")
    assert config.prediction_type == "v_prediction"


def test_saved_folder_loads_as_any_backbone(pipeline: Pipeline, tmp_path: Path) -> None:
    save_pipeline(tmp_path / "weights", pipeline)
    backbone = load_backbone(tmp_path / "weights")
    assert (backbone.image_size, backbone.latent_size) == (4 * LATENT, LATENT)
    assert backbone.vae.config.scaling_factor == 0.5 and backbone.predicts_velocity
    assert backbone.encode_text("a car , red body").shape == (1, LENGTH, backbone.text_width)
    saved = pipeline.unet.state_dict()
    for name, weight in backbone.unet.state_dict().items():
        torch.testing.assert_close(weight, saved[name].half().float(), rtol=0, atol=0)
    assert not list((tmp_path / "weights").glob("new-*"))


def test_saving_again_replaces_and_keeps_what_is_not_its_own(pipeline: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "slime.json").write_text("{}")
    for _ in range(2):
        save_pipeline(tmp_path, pipeline)
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"slime.json", "unet", "vae", "text_encoder", "tokenizer", "scheduler"}


@pytest.mark.skipif(not (WEIGHTS / "unet").is_dir(), reason="no trained weights in this checkout")
def test_trained_weights_are_small_and_half_precision() -> None:
    files = [p for p in WEIGHTS.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 25e6
    assert not [p for p in files if p.suffix in {".bin", ".pt", ".ckpt"}]
    assert json.loads((WEIGHTS / "unet" / "config.json").read_text())["sample_size"] == LATENT
    unet = load_backbone("embedded").unet
    assert 5e6 <= sum(p.numel() for p in unet.parameters()) <= 8e6
