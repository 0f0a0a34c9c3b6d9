"""Publishing: the order, what stays, what is refused, and that neither a failure nor a kill leaves anything half done.

The networks are a few bytes here; only the files and their names matter.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from exporting import Snapshot
from publishing import (
    BACKBONE,
    FakeServer,
    assert_all_or_nothing,
    assert_servable,
    assert_taken_back,
    killed,
    published_twice,
    run,
)

from slime_export.errors import ServerError
from slime_export.publish.maintenance import rollback
from slime_repository import layout, manifest
from slime_repository.errors import RepositoryError
from slime_repository.served_code import files_of, source_model


def test_a_new_repository_is_whole(tmp_path: Path) -> None:
    repository = tmp_path / "models" / "repository"
    published = run(repository)
    assert (published.name, published.version) == ("car", 1)
    models = ["car", "car_unet", "preprocess", "vae_encoder", "was"]
    assert sorted(each.name for each in repository.iterdir()) == sorted([*models, "manifest.json"])
    assert layout.pinned(repository / "car") == {"preprocess": 1, "vae_encoder": 1, "car_unet": 1, "was": 1}
    assert '"32"' in layout.config_text(repository / "preprocess")
    assert f'"{BACKBONE}"' in layout.config_text(repository / "vae_encoder")
    for model, package in (("preprocess", "slime_image"), ("was", "slime_was")):
        source = files_of(source_model(model), 1, [package])
        assert {"model.py", f"{package}/__init__.py"} <= set(source)
        assert files_of(repository / model, 1, [package]) == source
    assert [each.name for each in repository.parent.iterdir()] == ["repository"]
    assert_servable(repository)


def test_the_latest_two_unets_stay(tmp_path: Path) -> None:
    for version, unets in ((1, [1]), (2, [1, 2]), (3, [2, 3]), (4, [3, 4])):
        assert run(tmp_path / "repository").version == version
        assert layout.versions(tmp_path / "repository/car_unet") == unets
        assert layout.versions(tmp_path / "repository/car") == unets  # the last one answers until the next is ready
        assert layout.pinned(tmp_path / "repository/car")["car_unet"] == version
        assert layout.versions(tmp_path / "repository/was") == [1]
        assert_servable(tmp_path / "repository")


def test_segmenters_share_what_is_the_backbones(tmp_path: Path) -> None:
    run(tmp_path / "repository")
    before = (tmp_path / "repository/car/config.pbtxt").read_text()
    run(tmp_path / "repository", "horse", parts=5)
    assert layout.segmenters(tmp_path / "repository") == ["car", "horse"]
    assert layout.versions(tmp_path / "repository/vae_encoder") == [1]
    assert (tmp_path / "repository/car/config.pbtxt").read_text() == before


def test_the_next_version_may_have_more_parts(tmp_path: Path) -> None:
    run(tmp_path / "repository", parts=3)
    config = layout.config_text(tmp_path / "repository/car_unet")
    run(tmp_path / "repository", parts=9)
    assert layout.config_text(tmp_path / "repository/car_unet") == config
    assert "part 8" in layout.config_text(tmp_path / "repository/car")


def test_another_backbone_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "repository")
    with pytest.raises(
        RepositoryError, match=r"holds segmenters of backbone a1a1a1a1a1a1, this one is of b2b2b2b2b2b2"
    ):
        layout.encoder_of(tmp_path / "repository", "b2" * 32)


def test_changed_code_becomes_a_new_version_until_others_would_lose_theirs(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    run(repository, "horse")
    for version in (2, 3):
        code = repository / "was" / str(version - 1) / "slime_was" / "weighting.py"
        code.write_text(code.read_text() + "\nOLDER = 1\n")
        (repository / manifest.FILE).unlink()  # the next publication writes one of what it finds
        if version == 3:
            with pytest.raises(RepositoryError, match=r"horse still uses version 1 of was.*repository.py upgrade"):
                run(repository, "car")
            run(repository, "horse")
        assert run(repository, "car").versions.was == version
        assert layout.pinned(repository / "horse")["was"] == (1 if version == 2 else 3)
        assert_servable(repository)


@pytest.mark.parametrize("existing", [0, 2])
def test_a_failure_at_any_step_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, snapshot: Callable[[Path], Snapshot], existing: int
) -> None:
    repository = tmp_path / "repository"
    for _ in range(existing):
        run(repository)
    assert_all_or_nothing(repository, snapshot, monkeypatch, lambda: run(repository))
    assert_servable(repository)


@pytest.mark.parametrize("existing", [0, 2])
def test_a_kill_at_any_step_leaves_a_servable_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: int
) -> None:
    step, codes = 0, {9}
    while codes == {9}:
        step += 1
        repository = tmp_path / str(step) / "repository"
        for _ in range(existing):
            run(repository)
        codes = {killed(step, lambda repository=repository: run(repository), monkeypatch)}
        assert_servable(repository)
        if existing:
            assert layout.pinned(repository / "car")["car_unet"] >= 2
        run(repository)
        assert_servable(repository)
        assert not [each for each in repository.parent.iterdir() if each != repository]
    assert codes == {0}
    assert step > 4


def test_a_repository_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "repository").write_text("")
    with pytest.raises(RepositoryError, match="cannot be a folder"):
        run(tmp_path / "repository")


@pytest.mark.parametrize("name", ["", "was", "car_unet", "vae_encoder", "a b", "../car", ".car", "c" * 65])
def test_names_that_cannot_be_served(name: str) -> None:
    with pytest.raises(RepositoryError, match="give another --name"):
        layout.check_name(name)


def test_a_running_server_checks_the_unet_before_it_switches(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    server = FakeServer(repository)
    run(repository, server=server)
    first = ["load preprocess", "load was", "load vae_encoder", "load car_unet", "try car on unet 1", "load car"]
    assert server.calls == first
    server.calls.clear()
    run(repository, server=server)
    assert server.calls == ["load car_unet", "try car on unet 2", "load car"]


def roll_back(repository: Path, server: FakeServer) -> object:
    return rollback(repository, "car", server=server, say=lambda _: None)


@pytest.mark.parametrize("fails_at", ["load car_unet", "try car on unet 3", "load car"])
@pytest.mark.parametrize("change", [run, roll_back])
def test_what_the_server_refuses_is_taken_back(
    tmp_path: Path, snapshot: Callable[[Path], Snapshot], change: Callable[..., object], fails_at: str
) -> None:
    repository = tmp_path / "repository"
    server = published_twice(repository)
    loaded = assert_taken_back(server, snapshot, fails_at, lambda: change(repository, server=server))
    assert server.loaded["car_unet"] == loaded["car_unet"]
    assert server.loaded["car"][1] == loaded["car"][1]
    assert run(repository, server=server).version == 3


def test_a_first_publication_that_fails_is_unloaded(tmp_path: Path, snapshot: Callable[[Path], Snapshot]) -> None:
    server = FakeServer(tmp_path / "repository", fails_at="load car")
    with pytest.raises(ServerError):
        run(tmp_path / "repository", server=server)
    assert not server.loaded
    assert not (tmp_path / "repository").exists()
