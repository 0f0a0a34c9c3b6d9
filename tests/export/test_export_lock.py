"""One change at a time: real processes that publish into one repository, wait for each other, and are killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from publishing import assert_servable, run

from slime_export.errors import BusyError
from slime_export.publish.lock import locked, staging
from slime_repository import layout, manifest
from slime_repository import served_code as sources


def in_a_process(action: Callable[[], object]) -> int:
    """Starts it; returns the process's id."""
    child = os.fork()
    if child:
        return child
    try:
        action()
    except BaseException:
        os._exit(1)
    os._exit(0)


def exit_code(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def publish_often(repository: Path, name: str) -> None:
    for _ in range(4):
        run(repository, name)


def test_two_processes_that_publish_at_once_corrupt_nothing(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    names = ("car", "car", "horse")
    processes = [in_a_process(lambda name=name: publish_often(repository, name)) for name in names]
    assert [exit_code(each) for each in processes] == [0, 0, 0]
    assert layout.live_version(repository / "car") == 8
    assert layout.live_version(repository / "horse") == 4
    assert_servable(repository)
    assert manifest.verify(repository)
    assert [each.name for each in tmp_path.iterdir()] == ["repository"]


def test_a_folder_that_goes_in_the_same_moment_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process made it, had nothing to put there, and removed it between our making and our opening it."""
    repository, times, opening = tmp_path / "repository", [], os.open

    def gone_at_first(path: Path, flags: int) -> int:
        if Path(path) == repository and not times:
            times.append(path)
            repository.rmdir()
        return opening(path, flags)

    monkeypatch.setattr(os, "open", gone_at_first)
    with locked(repository, 5.0):
        assert times and repository.is_dir()


def test_a_staging_folder_that_goes_in_the_same_moment_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [tmp_path / ".repository.staging-gone"])
    with staging(tmp_path / "repository") as folder:
        assert folder.is_dir()


def test_who_waits_says_so_and_gives_up(tmp_path: Path) -> None:
    run(tmp_path / "repository")
    lines: list[str] = []
    second = locked(tmp_path / "repository", 0.1, lines.append)
    refusing = pytest.raises(BusyError, match=r"still changing it after 0\.1 s")
    with locked(tmp_path / "repository"), refusing as refused, second:
        pass
    assert "--wait" in str(refused.value)
    assert lines == [
        f"repository {tmp_path / 'repository'}: another process is changing it; waiting for up to 0.1 s",
    ]
    run(tmp_path / "repository")


def test_a_killed_holder_frees_the_lock_and_its_staging_folder_goes(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    run(repository)

    def hold() -> None:
        with staging(repository), locked(repository):
            time.sleep(60)

    process = in_a_process(hold)
    while not list(tmp_path.glob(".repository.staging-*")):
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    assert exit_code(process) == -signal.SIGKILL
    assert list(tmp_path.glob(".repository.staging-*"))
    assert run(repository).version == 2
    assert not list(tmp_path.glob(".repository.staging-*"))


def test_others_staging_folders_stay_while_their_process_lives(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    with staging(repository) as mine:
        (mine / "traced").write_text("for minutes")
        run(repository)
        assert (mine / "traced").exists()
        assert mine.stat().st_mode & 0o777 == 0o755


def test_a_repository_removed_while_waiting_is_made_again(tmp_path: Path) -> None:
    repository = tmp_path / "repository"

    def fail() -> None:
        with locked(repository):
            time.sleep(0.3)

    process = in_a_process(fail)
    while not repository.exists():
        time.sleep(0.01)
    run(repository)
    assert exit_code(process) == 0
    assert_servable(repository)


def test_what_is_the_projects_own_is_never_moved() -> None:
    own = sources.source_model("was").parent
    assert sources.is_own(own, "was") and not sources.is_own(own / "nothing", "was")
    assert all(each.name not in ("was", "preprocess") for each in sources.published(own))
