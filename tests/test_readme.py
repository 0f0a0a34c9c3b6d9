"""What the README tells people to type exists: scripts, options, make targets, files, and the client's six lines."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import slime_client
from painting import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^ *```(\w+)\n(.*?)^ *```", README, re.S | re.M)
COMMANDS = [
    line.strip()
    for language, block in BLOCKS
    if language == "bash"
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip()
]


def words(command: str) -> list[str]:
    return command.partition("#")[0].replace("[", " ").replace("]", " ").split()


@pytest.mark.parametrize("script", sorted({w for c in COMMANDS for w in words(c) if w.endswith(".py")}))
def test_every_option_of_a_script_is_one_it_has(script: str) -> None:
    used = {w for c in COMMANDS if script in words(c) for w in words(c) if w.startswith("--")}
    shown = subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True, text=True, check=True).stdout
    assert used
    for option in used:
        assert re.search(rf"{option}\b", shown), f"{script} {option}"


def test_every_make_target_is_in_the_makefile() -> None:
    targets = {words(command)[1] for command in COMMANDS if command.startswith("make ")}
    assert {"demo", "test", "lint", "serve"} <= targets
    makefile = (ROOT / "Makefile").read_text()
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_the_client_lines_name_what_the_client_has() -> None:
    (snippet,) = [block for language, block in BLOCKS if language == "python"]
    compile(snippet, "README.md", "exec")
    for method in re.findall(r"mask\.(\w+)\(", snippet):
        assert hasattr(slime_client.Mask, method)
    for method in re.findall(r"segmenter\.(\w+)\(", snippet):
        assert hasattr(slime_client.Segmenter, method)


def test_every_file_the_readme_points_at_is_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / Path(target)).exists(), target
