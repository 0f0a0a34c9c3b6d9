"""Rolling back and removing: old content as a new version, only what nobody uses leaves, and failures change nothing.

The networks are a few bytes here, as in test_export_repository.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from exporting import Snapshot
from publishing import (
    FakeServer,
    assert_all_or_nothing,
    assert_servable,
    assert_taken_back,
    killed,
    published_twice,
    run,
)

from slime_export.publish.maintenance import remove, rollback
from slime_repository import layout, record, served_code
from slime_repository.errors import RepositoryError


def quiet(line: str) -> None:
    pass


def network(repository: Path, name: str = "car") -> str:
    """What the UNet that serves has for content."""
    unet = layout.unet_of(repository / name)
    assert unet
    return (repository / unet / str(layout.pinned(repository / name)[unet]) / "model.onnx").read_text()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """car at version 2, of 4 parts, with version 1, of 3 parts, beside it; the networks differ."""
    target = tmp_path / "repository"
    run(target, parts=3, unet="first")
    run(target, parts=4, unet="second")
    return target


def test_old_content_is_a_new_version(repository: Path) -> None:
    config = layout.config_text(repository / "car")
    assert rollback(repository, "car", say=quiet) == (1, 3)
    assert layout.pinned(repository / "car")["car_unet"] == 3
    assert network(repository) == "first"
    assert "part 3" in config and "part 3" not in layout.config_text(repository / "car")
    assert layout.versions(repository / "car") == layout.versions(repository / "car_unet") == [2, 3]
    assert record.facts(repository / "car" / "3")["content_of"] == 1
    for file in (record.IMAGE_FILE, record.MASK_FILE):
        assert (repository / "car" / "3" / file).read_bytes() == (repository / "car" / "2" / file).read_bytes()
    assert_servable(repository)


def test_it_takes_no_room(repository: Path) -> None:
    before = (repository / "car_unet" / "1" / "model.onnx").stat().st_ino
    rollback(repository, "car", say=quiet)
    assert (repository / "car_unet" / "3" / "model.onnx").stat().st_ino == before


def test_back_and_forth(repository: Path) -> None:
    for version, content in ((3, "first"), (4, "second"), (5, "first")):
        assert rollback(repository, "car", say=quiet)[1] == version
        assert network(repository) == content
        assert len(layout.versions(repository / "car")) == 2
        assert_servable(repository)


def test_to_a_version_that_was_kept(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    for content in ("first", "second", "third", "fourth"):
        run(repository, unet=content, keep=3)
    assert layout.versions(repository / "car") == layout.versions(repository / "car_unet") == [2, 3, 4]
    assert rollback(repository, "car", 2, say=quiet) == (2, 5)
    assert network(repository) == "second"
    # As many versions stay as there were.
    assert layout.versions(repository / "car") == [3, 4, 5]


@pytest.mark.parametrize(
    ("name", "to", "line"),
    [
        ("car", 7, "no version 7 in repository .* kept: 1; publish it again"),
        ("car", 2, "version 2 is the one that serves; kept beside it: 1"),
        ("horse", None, "segmenter horse: not in repository .*; segmenters there: car"),
        ("was", None, "segmenter was: not in repository"),
        ("../repository/car", None, "not in repository"),
    ],
)
def test_what_cannot_be_rolled_back(
    repository: Path, snapshot: Callable[[Path], Snapshot], name: str, to: int | None, line: str
) -> None:
    before = snapshot(repository)
    with pytest.raises(RepositoryError, match=line):
        rollback(repository, name, to, say=quiet)
    assert snapshot(repository) == before


def test_a_first_version_has_nothing_to_go_back_to(tmp_path: Path) -> None:
    run(tmp_path / "repository")
    with pytest.raises(RepositoryError, match=r"no version before the one that serves .* kept: none"):
        rollback(tmp_path / "repository", "car", say=quiet)
    with pytest.raises(RepositoryError, match="no such folder"):
        rollback(tmp_path / "nothing", "car", say=quiet)
    assert not (tmp_path / "nothing").exists()


def test_old_content_that_was_damaged_does_not_serve_again(repository: Path) -> None:
    (repository / "car_unet" / "1" / "model.onnx").write_text("firsT")
    with pytest.raises(RepositoryError, match=r"car_unet/1/model\.onnx is not what was published"):
        rollback(repository, "car", say=quiet)
    assert network(repository) == "second"


def test_code_of_then_serves_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a version was made of counts, also when `was` has had two versions since."""
    repository = tmp_path / "repository"
    real = served_code.wanted_files
    for generation in ("old", "newer", "newest"):
        monkeypatch.setattr(
            served_code, "wanted_files", lambda kind, g=generation: {**real(kind), "model.py": g.encode()}
        )
        run(repository, keep=3)
    assert layout.versions(repository / "was") == [1, 2, 3]
    rollback(repository, "car", 1, say=quiet)
    pinned = layout.pinned(repository / "car")
    assert (pinned["was"], pinned["preprocess"]) == (4, 4)
    assert (repository / "was" / "4" / "model.py").read_bytes() == b"old"
    assert_servable(repository)


def test_a_running_server_tries_it_before_it_switches(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    server = published_twice(repository)
    server.calls.clear()
    rollback(repository, "car", server=server, say=quiet)
    assert server.calls == ["load car_unet", "try car on unet 3", "load car"]


def test_removing_the_last_one_leaves_an_empty_repository(repository: Path) -> None:
    gone = remove(repository, "car", say=quiet)
    assert gone == ["car", "car_unet", "preprocess", "vae_encoder", "was"]
    assert [each.name for each in repository.iterdir()] == ["manifest.json"]
    assert json.loads((repository / "manifest.json").read_text())["files"] == {}
    run(repository)
    assert_servable(repository)


def test_what_others_use_stays(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    server = FakeServer(repository)
    run(repository, server=server)
    run(repository, "horse", server=server)
    server.calls.clear()
    assert remove(repository, "car", server, say=quiet) == ["car", "car_unet"]
    assert server.calls == ["unload car", "unload car_unet"]
    assert set(server.loaded) == {"horse", "horse_unet", "preprocess", "vae_encoder", "was"}
    assert_servable(repository)
    server.calls.clear()
    remove(repository, "horse", server, say=quiet)
    assert server.calls[:2] == ["unload horse", "unload horse_unet"]
    assert not server.loaded


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("lorry", "segmenter lorry: not in repository .*; segmenters there: car"),
        ("was", "model was: is no segmenter, and car cannot do without it"),
        ("car_unet", "model car_unet: is no segmenter, and car cannot do without it"),
        ("../repository/car", "not in repository"),
    ],
)
def test_what_cannot_be_removed(repository: Path, snapshot: Callable[[Path], Snapshot], name: str, line: str) -> None:
    before = snapshot(repository)
    with pytest.raises(RepositoryError, match=line):
        remove(repository, name, say=quiet)
    assert snapshot(repository) == before


def test_a_removal_that_the_server_refuses_is_taken_back(tmp_path: Path, snapshot: Callable[[Path], Snapshot]) -> None:
    repository = tmp_path / "repository"
    server = FakeServer(repository)
    run(repository, server=server)
    loaded = assert_taken_back(
        server, snapshot, "unload car_unet", lambda: remove(repository, "car", server, say=quiet)
    )
    assert server.loaded == loaded


@pytest.mark.parametrize("action", [rollback, remove])
def test_a_failure_at_any_step_changes_nothing(
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    snapshot: Callable[[Path], Snapshot],
    action: Callable[..., object],
) -> None:
    assert_all_or_nothing(repository, snapshot, monkeypatch, lambda: action(repository, "car", say=quiet))


@pytest.mark.parametrize("action", [rollback, remove])
def test_a_kill_at_any_step_leaves_a_servable_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: Callable[..., object]
) -> None:
    step, codes = 0, {9}
    while codes == {9}:
        step += 1
        repository = tmp_path / str(step) / "repository"
        run(repository, "horse")
        for _ in range(2):
            run(repository)
        codes = {killed(step, lambda repository=repository: action(repository, "car", say=quiet), monkeypatch)}
        assert_servable(repository)
        run(repository)
        remove(repository, "car", say=quiet)
        assert layout.models(repository) == ["horse", "horse_unet", "preprocess", "vae_encoder", "was"]
        assert_servable(repository)
    assert codes == {0}
    assert step > 4


def test_a_mask_that_is_not_as_expected_is_told() -> None:
    check = record.Check(image=b"", mask_HW=np.zeros((2, 5), np.uint8), agreement=0.9, training_image=True)
    assert check.complaint(np.array([[0] * 5, [0, 0, 0, 0, 1]], np.uint8)) is None
    told = check.complaint(np.array([[0] * 5, [0, 0, 0, 1, 1]], np.uint8)) or ""
    assert re.match(r"answers the training image with a mask of which 80.00 %.* at least 90 %", told)
    for wrong in (None, np.zeros((5, 2), np.uint8)):
        assert "0.00 %" in (check.complaint(wrong) or "")
