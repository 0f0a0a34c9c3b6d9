"""Embeddings as the method's published code saves them become a segmenter; anything else is refused in one line."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from painting import PARTS, Main, paint
from slime_optimize import Backbone, Predictor, Segmenter
from slime_optimize.presets import PRESETS
from slime_optimize.published import import_published

WIDTH = 32


def save(folder: Path, *values: Any) -> Path:
    """embedding_0.pth … as torch.save leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, value in enumerate(values):
        torch.save(value, folder / f"embedding_{number}.pth")
    return folder


def leaf(seed: int, *shape: int) -> torch.Tensor:
    """As that code saves it: a tensor that was learned."""
    return torch.randn(shape or (1, 1, WIDTH), generator=torch.Generator().manual_seed(seed)).requires_grad_(True)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    return save(tmp_path / "published", leaf(0), leaf(1))


@pytest.fixture
def words(published: Path, folders: dict[str, Path], tmp_path: Path) -> list[str]:
    """import_reference.py's command line."""
    options = ["--backbone", str(folders["sd21"]), "--out", str(tmp_path / "out")]
    return [str(published), "--parts", *PARTS, *options]


def test_published_embeddings_become_a_segmenter(
    import_reference: Main, words: list[str], loaded: dict[str, Backbone], tmp_path: Path
) -> None:
    assert import_reference([*words, "--threshold", "0.1"]) == 0
    made = Segmenter.load(tmp_path / "out")
    assert torch.equal(made.embeddings, torch.cat([leaf(0)[0], leaf(1)[0]]).detach())
    assert made.preset == "reference" and made.settings.channel_order == "bgr" and made.settings.threshold == 0.1
    assert json.loads((tmp_path / "out" / "segmenter.json").read_text())["settings"]["channel_order"] == "bgr"
    assert made.settings == replace(PRESETS["reference"], threshold=0.1)
    assert sorted(made.metrics["imported"]) == ["embedding_0.pth", "embedding_1.pth"]
    assert Predictor(made, loaded["sd21"]).mask(paint()[0]).shape == (70, 90)


def test_the_prompt_names_each_part_once(published: Path, loaded: dict[str, Backbone]) -> None:
    """That code's prompt is as long as there are parts; the rows after it count in the softmax over all tokens."""
    backbone = loaded["sd21"]
    made = import_published(published, PARTS, backbone, PRESETS["reference"])
    assert torch.equal(made.text_embedding[:, 3:], backbone.encode_text("part part part")[:, 3:])
    assert not torch.equal(made.text_embedding[:, 5:], backbone.encode_text("part " * 77)[:, 5:])


def test_images_reach_the_backbone_as_bgr(published: Path, loaded: dict[str, Backbone]) -> None:
    made = import_published(published, PARTS, loaded["sd21"], replace(PRESETS["reference"], threshold=0.0))
    rgb = replace(made, settings=replace(made.settings, channel_order="rgb"))
    image = paint()[0]
    scores = [Predictor(each, loaded["sd21"]).scores for each in (made, rgb)]
    turned = np.ascontiguousarray(image[..., ::-1])
    assert torch.equal(scores[0]([image]), scores[1]([turned]))
    assert not torch.equal(scores[0]([image]), scores[1]([image]))


def test_all_parts_in_one_file(published: Path, loaded: dict[str, Backbone], tmp_path: Path) -> None:
    both = torch.cat([leaf(0)[0], leaf(1)[0]]).detach()
    for name, value in (("flat", both), ("batched", both[None]), ("rows", None)):
        folder = save(tmp_path / name, *([value] if value is not None else both))
        made = import_published(folder, PARTS, loaded["sd21"], PRESETS["reference"])
        assert torch.equal(made.embeddings, both)


def test_ten_parts_are_read_by_number(loaded: dict[str, Backbone], tmp_path: Path) -> None:
    folder = save(tmp_path / "many", *map(leaf, range(11)))
    names = ("background", *(f"part {i}" for i in range(11)))
    made = import_published(folder, names, loaded["sd21"], PRESETS["reference"])
    assert torch.equal(made.embeddings, torch.cat([leaf(i)[0] for i in range(11)]).detach())


class Mischief:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, ("mischief",)


def spoilt_pickle(folder: Path) -> None:
    (folder / "embedding_1.pth").write_bytes(pickle.dumps(Mischief()))


def truncated(folder: Path) -> None:
    path = folder / "embedding_1.pth"
    path.write_bytes(path.read_bytes()[:-200])


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "code in it": (lambda folder: save(folder, leaf(0), Mischief()), "embedding_1.pth: holds more than a tensor"),
    "code alone": (spoilt_pickle, "embedding_1.pth: holds more than a tensor"),
    "cut short": (truncated, "embedding_1.pth: cannot be read"),
    "empty": (lambda folder: (folder / "embedding_1.pth").write_bytes(b""), "embedding_1.pth: "),
    "no tensor": (lambda folder: save(folder, [1.0]), "embedding_0.pth: got list"),
    "whole numbers": (lambda folder: save(folder, torch.ones(1, 1, WIDTH).long()), "got torch.int64"),
    "another width": (lambda folder: save(folder, leaf(0, 1, 1, 24)), "got shape (1, 1, 24), expected (1, 1, 32)"),
    "a batch": (lambda folder: save(folder, leaf(0, 2, 1, WIDTH)), "got shape (2, 1, 32)"),
    "no number": (lambda folder: save(folder, torch.full((1, 1, WIDTH), float("nan"))), "not numbers"),
    "a part too many": (lambda folder: save(folder, leaf(0), leaf(1), leaf(2)), "hold 3 parts in 3 files, expected 2"),
    "one missing": (lambda folder: (folder / "embedding_0.pth").unlink(), "has no embedding_0.pth"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_what_cannot_be_used_is_refused(
    kind: str,
    import_reference: Main,
    words: list[str],
    published: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    spoil, expected = SPOILT[kind]
    spoil(published)
    assert import_reference(words) == 2
    shown = capsys.readouterr()
    assert len(shown.err.splitlines()) == 1 and shown.err.startswith("error: ") and expected in shown.err
    assert shown.out == "" and not (tmp_path / "out").exists() and not (tmp_path / "mischief").exists()


def test_a_folder_that_is_not_there(
    import_reference: Main, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert import_reference(["nowhere", *words[1:]]) == 2
    assert "embeddings nowhere: no such folder" in capsys.readouterr().err
