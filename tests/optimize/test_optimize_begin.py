"""Learning on from a segmenter that is there: where it starts, what is recorded, and what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from painting import PARTS, Files, Main
from slime_optimize import Segmenter


@pytest.fixture
def words(files: Files, folders: dict[str, Path]) -> list[str]:
    """run.py's command line, without --out and --parts."""
    data = ["--image", str(files.image), "--mask", str(files.mask), "--steps", "2", "--quiet", "--no-report"]
    return [*data, "--backbone", str(folders["sd15"])]


@pytest.fixture
def first(run: Main, words: list[str], tmp_path: Path) -> Path:
    out = tmp_path / "first"
    assert run([*words, "--parts", *PARTS, "--out", str(out)]) == 0
    return out


def test_it_starts_from_the_embeddings_that_are_there(run: Main, words: list[str], first: Path, tmp_path: Path) -> None:
    """With a learning rate next to nothing, what is learned is what it began with."""
    out = tmp_path / "second"
    more = ["--parts", *PARTS, "--begin", str(first), "--learning-rate", "1e-9"]
    assert run([*words, *more, "--out", str(out)]) == 0
    begun, learned = Segmenter.load(first), Segmenter.load(out)
    assert torch.allclose(learned.embeddings, begun.embeddings, atol=1e-6)
    assert not torch.allclose(learned.embeddings, begun.text_embedding[0, 10:12], atol=1e-3)
    assert learned.begun_from == {"segmenter": str(first), "hash": begun.hash}
    assert json.loads((first / "segmenter.json").read_text())["begun_from"] is None


def test_where_a_run_begins_makes_another_run(
    run: Main, words: list[str], first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*words, "--parts", *PARTS, "--out", str(tmp_path / "second")]
    assert run([*words, "--begin", str(first)]) == 0
    assert f"begins from {first}" in capsys.readouterr().out
    assert run([*words, "--begin", str(first)]) == 0
    assert "this run has finished already" in capsys.readouterr().out
    assert run(words) == 0
    assert "finished already" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (["--parts", "background", "green", "red"], "has the parts background, red, green, this run background, gr"),
        (["--parts", *PARTS, "--prompt-word", "thing"], "give --prompt-word part --prompt-times parts, or leave"),
        (["--parts", *PARTS, "--prompt-times", "tokens"], "its text around the parts is another"),
        (["--parts", *PARTS, "--backbone", "SD21"], "was learned on backbone"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(
    changed: list[str],
    told: str,
    run: Main,
    words: list[str],
    first: Path,
    folders: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changed = [word.replace("SD21", str(folders["sd21"])) for word in changed]
    assert run([*words, *changed, "--begin", str(first), "--out", str(tmp_path / "second")]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: --begin {first}: ") and told in line and line.count("\n") == 1
    assert not (tmp_path / "second").exists()


def test_a_folder_without_a_segmenter_is_told(
    run: Main, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*words, "--parts", *PARTS, "--begin", str(tmp_path / "nothing"), "--out", str(tmp_path / "second")]
    assert run(words) == 2
    assert "has no segmenter.json" in capsys.readouterr().err
