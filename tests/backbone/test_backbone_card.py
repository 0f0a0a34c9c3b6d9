"""The model card says what the files say."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from slime_backbone.card import parameters, read_training
from slime_backbone.models import LENGTH
from slime_backbone.pictures import smooth
from slime_backbone.samples import PROMPTS
from slime_backbone.saving import pipeline_of, save_pipeline
from slime_backbone.scene import KINDS
from slime_backbone.words import found_by_words
from slime_optimize.backbone import EMBEDDED, load_backbone


@pytest.fixture(scope="module")
def weights(state: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    save_pipeline(folder, pipeline_of(state))
    return folder


@pytest.mark.slow
def test_card_is_written_from_facts(state: Path, weights: Path, tmp_path: Path, card_script: ModuleType) -> None:
    few = [word for name in ("steps", "prompts", "scenes") for word in (f"--{name}", "1")]
    arguments = ["--state", str(state), "--weights", str(weights), "--out", str(tmp_path), *few]
    assert card_script.main([*arguments, "--ran-on", "an abacus"]) == 0
    for name in ("loss.png", "samples.png", "reconstructions.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 200
    text = (tmp_path / "card.md").read_text()
    for fact in (
        "an abacus",
        f"{parameters(weights, 'unet'):,}",
        "16 cross-attention layers",
        "MIT",
        "7 steps",
        "0.5000",
    ):
        assert fact in text
    layers = re.findall(r"^\| \w+\.\S+ \| (\S+) \| (\S+) \| (\S+) \|$", text, re.MULTILINE)
    assert len(layers) == 16
    # Random weights: words look everywhere alike, and find their parts by chance.
    for first, tokens, auc in layers:
        assert 0 <= float(first) <= 1 <= float(tokens) <= 77 and 0.3 < float(auc) < 0.7
    assert "never" in text and "images and captions only" in text
    assert str(tmp_path) not in text


def test_card_without_a_state_is_one_line(
    weights: Path, tmp_path: Path, card_script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert card_script.main(["--state", str(tmp_path / "none"), "--weights", str(weights), "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: state ") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_parameters_are_counted_from_the_headers(state: Path, weights: Path) -> None:
    pipeline = pipeline_of(state)
    for part in ("unet", "vae", "text_encoder"):
        expected = sum(p.numel() for p in getattr(pipeline, part).parameters())
        assert parameters(weights, part) == expected


def test_training_is_read(state: Path) -> None:
    training = read_training(state, "diffusion")
    assert (training.step, training.recorded_from, training.scenes) == (7, 7, [])


def test_prompts_speak_the_captions_language(captions: list[str], tokenizer: object) -> None:
    known = {word for caption in captions for word in caption.split()}
    assert {word for prompt in PROMPTS for word in prompt.split()} <= known
    assert {prompt.split()[1] for prompt in PROMPTS} == set(KINDS)
    assert all(len(tokenizer(prompt).input_ids) <= LENGTH for prompt in PROMPTS)  # type: ignore[operator]


def test_curve_is_smoothed_by_means() -> None:
    steps, values = smooth(range(1, 401), [float(i % 2) for i in range(400)])
    assert len(steps) == 200 and set(values) == {0.5}
    assert smooth([], []) == ([], [])


def test_what_words_find_is_measured_by_their_place_in_the_caption() -> None:
    """The weights that ship: the first token is a sink, and one layer finds nearly every part."""
    found = found_by_words(load_backbone(EMBEDDED), 1)
    assert np.mean([layer.first for layer in found.values()]) > 0.7
    assert found["up_blocks.2.attentions.2"].auc > 0.9
