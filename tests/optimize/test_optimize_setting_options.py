"""Every field of Settings is an option, explained once, of the right kind."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

import pytest

from slime_optimize import InputError, Settings
from slime_optimize.options import HELP, add_settings, chosen
from slime_optimize.settings import CHOICES


def settings(*words: str, base: Settings | None = None) -> Settings:
    parser = argparse.ArgumentParser()
    add_settings(parser)
    return chosen(parser.parse_args(words), base or Settings())


def test_every_field_is_explained_and_nothing_else_is() -> None:
    assert [field.name for field in fields(Settings)] == list(HELP)
    parser = argparse.ArgumentParser()
    add_settings(parser)
    shown = parser.format_help()
    for field in fields(Settings):
        assert f"--{field.name.replace('_', '-')}" in shown or field.name == "layers"
    assert "--cross-layers" in shown and "--self-layers" in shown


def test_nothing_given_changes_nothing() -> None:
    base = Settings(steps=3, crop=(0.7, 0.8), extra_timesteps=(5,), rescale=True)
    assert settings(base=base) == base


GIVEN: dict[str, tuple[str, Any]] = {
    "learning-rate": ("0.5", 0.5),
    "steps": ("7", 7),
    "t-opt": ("3 9", (3, 9)),
    "crop": ("0.5 0.75", (0.5, 0.75)),
    "extra-timesteps": ("20 200", (20, 200)),
    "channel-order": ("bgr", "bgr"),
    "prompt-word": ("thing", "thing"),
    "rescale": ("", True),
}


@pytest.mark.parametrize("option", GIVEN)
def test_values_arrive(option: str) -> None:
    words, expected = GIVEN[option]
    assert getattr(settings(f"--{option}", *words.split()), option.replace("-", "_")) == expected


def test_what_a_preset_has_can_be_taken_away() -> None:
    base = Settings(rescale=True, extra_timesteps=(5, 6))
    changed = settings("--no-rescale", "--extra-timesteps", base=base)
    assert changed.rescale is False and changed.extra_timesteps == ()


def test_one_kind_of_layers_leaves_the_other() -> None:
    name = "up_blocks.1.attentions.0.transformer_blocks.0.attn2"
    changed = settings("--cross-layers", name)
    assert changed.layers.cross == (name,) and changed.layers.self_ == Settings().layers.self_


@pytest.mark.parametrize("field", CHOICES)
def test_choices_are_told(field: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        settings(f"--{field.replace('_', '-')}", "sideways")
    told = capsys.readouterr().err
    assert left.value.code == 2 and all(word in told for word in CHOICES[field])


def test_values_out_of_range() -> None:
    with pytest.raises(InputError, match="learning_rate: got -1"):
        settings("--learning-rate", "-1")
