"""Every field of Settings is an option, explained once, of the right kind."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from slime_optimize import InputError, Settings
from slime_optimize.old_names import OLD_NAMES
from slime_optimize.options import Parser, add_settings, chosen
from slime_optimize.settings import TEST_TIME

CHOICES = {field.name: field.metadata["choices"] for field in fields(Settings) if field.metadata["choices"]}


def settings(*words: str, base: Settings | None = None) -> Settings:
    parser = Parser()
    add_settings(parser)
    return chosen(parser.parse_args(words), base or Settings())


def test_every_field_is_explained_and_nothing_else_is() -> None:
    assert all(field.metadata["help"] for field in fields(Settings))
    parser = Parser(["--help-all"])
    add_settings(parser)
    shown = parser.format_help()
    for field in fields(Settings):
        assert f"--{field.name.replace('_', '-')}" in shown or field.name == "layers"
    assert "--cross-layers" in shown and "--self-layers" in shown


def test_help_shows_the_main_settings_alone() -> None:
    parser = Parser(["--help"])
    add_settings(parser)
    shown = parser.format_help()
    for field in fields(Settings):
        if field.name != "layers":  # its options are --cross-layers and --self-layers
            assert (f"--{field.name.replace('_', '-')} " in shown) == field.metadata["main"], field.name
    assert "--cross-layers" not in shown and "--help-all" in shown


@pytest.mark.parametrize("old", OLD_NAMES)
def test_old_options_are_refused_with_the_new_name(old: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="slime optimize")
    add_settings(parser)
    with pytest.raises(SystemExit) as left:
        parser.parse_args([f"--{old.replace('_', '-')}", "1"])
    (told,) = capsys.readouterr().err.splitlines()
    new = OLD_NAMES[old].replace("_", "-")
    assert left.value.code == 2 and told.startswith("error: ") and told.count(f"is now called --{new};") == 1


def test_mistakes_on_the_command_line_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="slime optimize")
    add_settings(parser)
    with pytest.raises(SystemExit) as left:
        parser.parse_args(["--steps", "few"])
    assert left.value.code == 2
    assert capsys.readouterr().err == (
        "error: argument --steps: invalid int value: 'few'; slime optimize --help shows the options\n"
    )


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


def test_settings_for_test_time_change_without_learning() -> None:
    changed = Settings().at_test_time(["threshold=0.1", "extra_timesteps=5,6", "flip_average=true", "readout=parts"])
    assert changed == Settings(threshold=0.1, extra_timesteps=(5, 6), flip_average=True, readout="parts")
    assert Settings(extra_timesteps=(5,)).at_test_time(["extra_timesteps="]).extra_timesteps == ()


REFUSED = {
    "threshold": "expected NAME=VALUE, such as threshold=0.1",
    "guide=0.2": "guide is now called edge_tolerance; write --set edge_tolerance=0.2",
    "steps=3": f"steps is part of what was learned, expected one of {', '.join(TEST_TIME)}",
    "encoder=tiny": "encoder is part of what was learned",
    "thresholds=3": "thresholds is no setting, expected one of t_test,",
    "threshold=low": "got 'low', expected a number",
    "t_test=1.5": "got '1.5', expected a whole number",
    "rescale=1": "got '1', expected true or false",
    "extra_timesteps=a": "got 'a', expected whole numbers with commas between them",
    "threshold=7": "threshold 7.0, expected 0 to 1",
    "noise_samples=17": "noise_samples: got 17, expected 1 to 16",
    "readout=all": "readout: got all, expected tokens or parts",
}


@pytest.mark.parametrize("change", REFUSED)
def test_what_cannot_be_changed_at_test_time(change: str) -> None:
    with pytest.raises(InputError) as told:
        Settings().at_test_time([change])
    assert REFUSED[change] in str(told.value) and len(str(told.value).splitlines()) == 1


def test_a_setting_is_changed_once() -> None:
    with pytest.raises(InputError, match="threshold is set twice"):
        Settings().at_test_time(["threshold=0.1", "threshold=0.2"])
