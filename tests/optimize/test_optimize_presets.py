"""docs/presets.md says of every preset what the code does."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from slime_optimize import InputError
from slime_optimize.backbone import embedded_folder, read_recommended
from slime_optimize.old_names import OLD_NAMES
from slime_optimize.presets import BEST, PAPER, PRESETS, REFERENCE, chosen_preset, preset
from slime_optimize.settings import TEST_TIME

ROW = re.compile(r"^\|(?: [\d-]+ \|)? `(\w+)`[^|]*\| `([^`]*)` \| `([^`]*)` \| `([^`]*)` \|", re.MULTILINE)
TEXT = (Path(__file__).resolve().parents[2] / "docs" / "presets.md").read_text()
ROWS = ROW.findall(TEXT)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_tables_tell_the_presets_values(row: tuple[str, str, str, str]) -> None:
    name, *told = row
    assert told == [str(getattr(settings, name)) for settings in (PAPER, REFERENCE, BEST)]


def test_no_difference_is_left_untold() -> None:
    differing = {
        field.name
        for field in fields(PAPER)
        if len({str(getattr(settings, field.name)) for settings in PRESETS.values()}) > 1
    }
    assert differing <= {row[0] for row in ROWS}
    assert len(ROWS) == 17


def test_what_can_be_changed_after_learning_is_told() -> None:
    told = re.search(r"^They are (.*?)\. Several", TEXT, re.MULTILINE | re.DOTALL)
    assert told and tuple(re.findall(r"`(\w+)`", told[1])) == TEST_TIME


def test_old_names_are_told() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|$", TEXT, re.MULTILINE)
    assert dict(rows) == OLD_NAMES


@pytest.mark.parametrize(
    ("given", "recommended", "expected"),
    [
        (None, read_recommended(embedded_folder()), ("best", "the backbone's slime.json")),
        (None, {"every": {"steps": 5}}, ("reference", "the default, because the backbone names none")),
        ("paper", {"preset": "best"}, ("paper", "--preset")),
    ],
)
def test_the_default_preset_is_the_backbones(
    given: str | None, recommended: dict[str, object], expected: tuple[str, str]
) -> None:
    assert chosen_preset(given, recommended) == expected
    preset(expected[0], recommended)  # the name is no setting, and no mistake


def test_a_backbone_that_names_no_such_preset_is_refused() -> None:
    with pytest.raises(InputError, match=r"slime\.json: got preset 'bets', expected one of best, paper, reference"):
        chosen_preset(None, {"preset": "bets"})
