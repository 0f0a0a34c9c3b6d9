"""docs/presets.md says of every preset what the code does."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from slime_optimize.presets import BEST, PAPER, PRESETS, REFERENCE

ROW = re.compile(r"^\|(?: [\d-]+ \|)? `(\w+)`[^|]*\| `([^`]*)` \| `([^`]*)` \| `([^`]*)` \|", re.MULTILINE)
ROWS = ROW.findall((Path(__file__).resolve().parents[2] / "docs" / "presets.md").read_text())


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
