"""docs/annotations.md: its commands are run.py's, and what it names is what the code recognises."""

from __future__ import annotations

import re

import pytest

from painting import ROOT, Main
from slime_optimize.data.annotations import example, legend
from slime_optimize.data.annotations.matching import IMAGE_FOLDERS, MASK_FOLDERS, WHOLE

TEXT = (ROOT / "docs" / "annotations.md").read_text()


def test_every_option_is_one_that_run_has(run: Main, capsys: pytest.CaptureFixture[str]) -> None:
    commands = re.findall(r"^python optimize/run\.py .*$", TEXT, re.M)
    with pytest.raises(SystemExit, match="0"):
        run(["--help"])
    help_text = capsys.readouterr().out
    assert len(commands) >= 7
    for option in set(re.findall(r"--[a-z-]+", "".join(commands))) | {"--validation"}:
        assert re.search(rf"{option}\b", help_text), option


def test_every_name_that_is_recognised_is_told() -> None:
    for name in (*IMAGE_FOLDERS, *MASK_FOLDERS, *WHOLE, *legend.LEGEND_FILES, *example._BACKGROUND, *example._VOID):
        assert f"`{name}`" in TEXT, name


def test_every_link_has_its_heading() -> None:
    headings = {
        re.sub(r"[^a-z -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^## (.*)$", TEXT, re.M)
    }
    for target in re.findall(r"\]\(#([^)]+)\)", TEXT):
        assert target in headings, target
