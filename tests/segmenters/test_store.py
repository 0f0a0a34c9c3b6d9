"""The store of shared segmenters: what is written is read back, changes are seen, and nothing else is opened."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from slime_store import Entry, Store, StoreError, UnknownSegmenterError, write


def entry(value: float = 1.0) -> Entry:
    return Entry(
        text_TD=np.full((77, 8), value, np.float32),
        noise_Xhw=np.full((4, 2, 2), -value, np.float32),
        postprocess=np.arange(8, dtype=np.float32),
        description={"parts": ["background", "Fenster ü"], "model": "shared_00000000"},
    )


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    store = Store(tmp_path)
    write(store.path("car"), entry(2.0))
    got = store.get("car")
    assert np.array_equal(got.text_TD, entry(2.0).text_TD) and np.array_equal(got.noise_Xhw, entry(2.0).noise_Xhw)
    assert np.array_equal(got.postprocess, entry().postprocess) and got.description == entry().description
    assert store.names() == ["car"] and [each.name for each in tmp_path.iterdir()] == ["car.safetensors"]


def test_a_file_from_before_a_tensor_was_renamed_is_read(tmp_path: Path) -> None:
    tensors = {"TEXT": entry().text_TD, "NOISE": entry().noise_Xhw, "WEIGHTING": entry().postprocess}
    save_file(tensors, tmp_path / "car.safetensors", {"description": json.dumps(entry().description)})
    assert np.array_equal(Store(tmp_path).get("car").postprocess, entry().postprocess)


def test_a_new_file_is_seen_and_an_unchanged_one_is_not_read_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    write(store.path("car"), entry(1.0))
    first = store.get("car")
    assert store.get("car") is first
    write(store.path("car"), entry(3.0))
    assert store.get("car").text_TD[0, 0] == 3.0
    store.path("car").unlink()
    with pytest.raises(UnknownSegmenterError, match="'car': not here"):
        store.get("car")


def test_only_the_latest_are_kept_in_memory(tmp_path: Path) -> None:
    store = Store(tmp_path, kept=2)
    for name in ("a", "b", "c"):
        write(store.path(name), entry())
    first = store.get("a")
    store.get("b")
    assert store.get("a") is first
    store.get("c")
    assert store.get("a") is first and len(store._entries) == 2


def test_one_that_is_being_checked_can_be_asked_for_and_is_not_listed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    write(store.path(".car"), entry())
    assert store.names() == [] and store.get(".car").description["model"] == "shared_00000000"


@pytest.mark.parametrize("name", ["", "..", "../car", "a/b", "/etc/passwd", "car.safetensors", "a" * 65, "ca\0r", "ü"])
def test_what_is_no_name_opens_nothing(tmp_path: Path, name: str) -> None:
    write(tmp_path / "car.safetensors", entry())
    with pytest.raises(UnknownSegmenterError, match="not a name"):
        Store(tmp_path / "inner").get(name)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_damaged_file_is_told_without_its_path(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "car.safetensors").write_bytes(content)
    with pytest.raises(StoreError, match="'car': its file is damaged; publish it again") as caught:
        Store(tmp_path).get("car")
    assert os.fspath(tmp_path) not in str(caught.value)
