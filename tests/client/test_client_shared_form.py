"""Segmenters of the shared form: found by name, asked through the model they share, followed when published anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_triton import FakeTriton, Refusal

from slime_client import Segmenter, SegmenterError, segmenters


def entry(*parts: str, model: str = "shared_1") -> dict[str, Any]:
    return {"parts": list(parts), "colours": [[7, 7, 7]] * len(parts), "model": model, "backbone": "small"}


@pytest.fixture
def horse(server: FakeTriton) -> FakeTriton:
    server.registry = {"horse": entry("background", "head"), "cow": entry("background", "tail")}
    return server


def test_either_form_is_found(horse: FakeTriton, photo: Path) -> None:
    with Segmenter(horse.url, "car") as car, Segmenter(horse.url, "horse") as shared:
        assert (car.description.form, car.description.model) == ("baked", "car")
        assert (shared.description.form, shared.description.model) == ("shared", "shared_1")
        assert shared.description.about == {"backbone": "small"}
        assert shared.parts == ("background", "head")
        assert shared.segment(photo).parts == ("background", "head")
        assert car.segment(photo).parts == car.parts == ("background", "body", "wheel")


def test_what_is_published_anew_is_followed(horse: FakeTriton, photo: Path) -> None:
    with Segmenter(horse.url, "horse") as segmenter:
        horse.registry["horse"] = entry("background", "mane", "tail")
        assert segmenter.segment(photo).parts == ("background", "mane", "tail")
        assert segmenter.parts == ("background", "mane", "tail")


def test_what_moved_to_another_model_is_asked_there(horse: FakeTriton, photo: Path) -> None:
    with Segmenter(horse.url, "horse") as segmenter:
        horse.registry["horse"] = entry("background", "mane", model="shared_2")
        assert segmenter.segment(photo).parts == ("background", "mane")
        assert segmenter.description.model == "shared_2"
        assert len(horse.received) == 2
        # And to a model of its own.
        del horse.registry["horse"]
        horse.models["horse"] = dict(horse.models["car"])
        assert segmenter.segment(photo).parts == ("background", "body", "wheel")


def test_what_is_removed_is_not_found(horse: FakeTriton, photo: Path) -> None:
    with Segmenter(horse.url, "horse") as segmenter:
        del horse.registry["horse"]
        with pytest.raises(SegmenterError, match="it serves: car, cow") as caught:
            segmenter.segment(photo)
        assert caught.value.code == "NOT_FOUND"


def test_the_model_that_many_share_is_no_segmenter(horse: FakeTriton) -> None:
    horse.models["shared_1"] = dict(horse.models["car"], form="shared")
    with pytest.raises(SegmenterError, match="no segmenter") as caught:
        Segmenter(horse.url, "shared_1")
    assert caught.value.code == "NOT_FOUND"


def test_all_are_listed(horse: FakeTriton) -> None:
    every = segmenters(horse.url)
    assert [(description.name, description.form) for description in every] == [
        ("car", "baked"),
        ("cow", "shared"),
        ("horse", "shared"),
    ]


@pytest.mark.parametrize(
    "said", [[], "horse", {"parts": ["a"]}, {"parts": ["a"], "colours": [[0, 0, 300]], "model": "m"}]
)
def test_nonsense_in_the_registry(horse: FakeTriton, said: Any) -> None:
    horse.registry["horse"] = said
    with pytest.raises(SegmenterError, match="publish it again") as caught:
        Segmenter(horse.url, "horse")
    assert caught.value.code == "INTERNAL"


def test_a_registry_that_fails_is_no_missing_segmenter(horse: FakeTriton, monkeypatch: pytest.MonkeyPatch) -> None:
    import grpc  # type: ignore[import-untyped]

    def damaged(server: FakeTriton, name: bytes) -> Any:
        raise Refusal(grpc.StatusCode.INTERNAL, "segmenter 'horse': its file is damaged; publish it again")

    monkeypatch.setattr(FakeTriton, "_registered", damaged)
    with pytest.raises(SegmenterError, match="its file is damaged") as caught:
        Segmenter(horse.url, "horse")
    assert caught.value.code == "INTERNAL"
