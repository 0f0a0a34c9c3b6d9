"""How many images may be under way: counted across processes, and never for long by what was lost."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import numpy as np
import pytest

from slime_image.admission import MOST, Places, shared_file
from slime_was.admission import Finished

SECOND = 1_000_000_000


def finish(path: Path, began: int, ended: int) -> None:
    """What `was` notes."""
    with path.open("r+b") as file:
        file.write(struct.pack("=qq", began, ended))


def test_was_notes_what_has_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same file: the one that the launcher names, or one in /dev/shm by Triton's process."""
    for named in (tmp_path / "places", None):
        if named is None:
            monkeypatch.delenv("SLIME_SERVE_PLACES", raising=False)
        else:
            monkeypatch.setenv("SLIME_SERVE_PLACES", str(named))
        path = shared_file()
        try:
            Finished().note(SECOND)
            began, ended = np.fromfile(path, np.int64)
            assert began == SECOND and abs(time.monotonic_ns() - ended) < 60 * SECOND
        finally:
            path.unlink()


def test_as_many_as_there_are_places_are_let_in(tmp_path: Path) -> None:
    path = tmp_path / "places"
    processes = [Places(path), Places(path)]
    assert processes[0].take(SECOND)
    finish(path, SECOND, 2 * SECOND)  # an image takes a second
    taken = [processes[turn % 2].take(3 * SECOND + turn) for turn in range(MOST + 5)]
    assert taken == [True] * MOST + [False] * 5
    finish(path, 3 * SECOND + 3, 3 * SECOND + 100)  # the fourth; the three before it are done, or lost
    assert [processes[0].take(3 * SECOND + 101 + turn) for turn in range(5)] == [True] * 4 + [False]


def test_what_was_lost_holds_no_place_for_ever(tmp_path: Path) -> None:
    """Where nothing finishes any more, one is let in for each second, which is what the last took."""
    path = tmp_path / "places"
    places = Places(path)
    places.take(SECOND)
    finish(path, SECOND, 2 * SECOND)
    start = 3 * SECOND
    assert all(places.take(start + turn) for turn in range(MOST))
    at = [turn for turn in range(35) if places.take(start + MOST + turn * SECOND // 10)]
    assert at == [10, 20, 30]


def test_before_the_first_image_has_finished_there_is_no_limit(tmp_path: Path) -> None:
    places = Places(tmp_path / "places")
    assert all(places.take(turn + 1) for turn in range(2 * MOST))


def test_the_place_of_one_that_could_not_be_read_is_free_at_once(tmp_path: Path) -> None:
    path = tmp_path / "places"
    places = Places(path)
    places.take(SECOND)
    finish(path, SECOND, 2 * SECOND)
    assert all(places.take(3 * SECOND + turn) for turn in range(MOST))
    places.free(3 * SECOND + 7)
    assert [places.take(3 * SECOND + MOST + turn) for turn in range(3)] == [True, False, False]
