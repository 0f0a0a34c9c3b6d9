"""serve/launch.py from outside: refusals before anything is started, failures in one line, nothing left behind."""

from __future__ import annotations

import shutil
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from asking import picture

from processes import SHARED_MEMORY, descendants, regions, running
from serving import FREE_PORTS, Served, launch, png, served, stop
from slime_serve import Server, ServerError, ServerSettings, UsageError, launch_command, process, wheel, workspace


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the launcher puts its temporary files, so that what failures keep is removed with the test's."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def outcome(repository: Path, *arguments: str, ports: tuple[str, ...] = FREE_PORTS) -> tuple[int, str]:
    """Exit code and stderr of a launch that must fail without a ready line."""
    launcher = launch(repository, *arguments, ports=ports)
    out, error = launcher.communicate(timeout=120)
    assert out == ""
    return launcher.returncode, error


def refusal(repository: Path, **settings: Any) -> str:
    """Why the settings cannot be served, which must come before anything is started."""
    free: dict[str, Any] = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}
    with pytest.raises(UsageError) as caught, Server(ServerSettings(repository=repository, **(free | settings))):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("content", ["missing", "empty", "no segmenters", "broken"])
def test_unusable_repository(tmp_path: Path, temporary: Path, content: str) -> None:
    repository = tmp_path / "repository"
    if content != "missing":
        repository.mkdir()
    if content in ("no segmenters", "broken"):
        (repository / "was").mkdir()
        text = 'name: "was" backend: "python"' if content == "no segmenters" else "nonsense {"
        (repository / "was/config.pbtxt").write_text(text)
    assert refusal(repository).startswith("repository")
    assert not list(temporary.iterdir())


def test_path_that_triton_cannot_handle(toy_repository: Path, tmp_path: Path) -> None:
    repository = tmp_path / "my models"
    shutil.copytree(toy_repository, repository)
    assert "move the folder" in refusal(repository)


@pytest.mark.parametrize(
    "settings", [{"threads": -1}, {"timeout": 0}, {"probe": 0}, {"log": Path("/nowhere/log")}, {"http_port": 70000}]
)
def test_wrong_settings(toy_repository: Path, settings: dict[str, Any]) -> None:
    assert next(iter(settings)).split("_")[0] in refusal(toy_repository, **settings)


def test_launcher_reports_a_refusal(tmp_path: Path) -> None:
    code, error = outcome(tmp_path / "missing")
    assert code == 2
    assert error == (
        f"error: repository {tmp_path}/missing: no such folder; publish a segmenter into it with export/build.py\n"
    )


@pytest.mark.parametrize("words", [[], ["--repository"], ["--repository", "x", "--instances", "was"], ["--port", "1"]])
def test_a_bad_command_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        launch_command.main(words, prog="slime serve")
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.endswith("; slime serve --help shows the options\n")
    assert error.count("\n") == 1


def test_options_for_operators_are_shown_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    shown = {}
    for word in ("--help", "--help-all"):
        with pytest.raises(SystemExit, match="0"):
            launch_command.main([word])
        shown[word] = capsys.readouterr().out
    for option in ("--repository", "--grpc-port", "--listen", "--admin-key-file"):
        assert option in shown["--help"] and option in shown["--help-all"]
    for option in ("--instances", "--drain", "--triton"):
        assert option not in shown["--help"] and option in shown["--help-all"]


def test_port_in_use(toy_repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, error = outcome(toy_repository, ports=("--grpc-port", str(port), *FREE_PORTS[2:]))
    assert code == 2
    assert error.startswith(f"error: grpc port {port}: cannot be used")
    assert error.count("\n") == 1


def test_machine_without_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(ServerError, match=r"Linux on x86-64, this is linux on aarch64; .*container"):
        wheel.find()


@pytest.mark.triton
def test_model_that_does_not_load(toy_repository: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(toy_repository, repository)
    (repository / "toy_unet/1/model.onnx").write_bytes(b"no network")
    log = tmp_path / "log"
    code, error = outcome(repository, "--log", str(log))
    assert code == 1
    assert error.startswith("error: model toy_unet: the server cannot load it")
    assert error.count("\n") == 1
    assert "toy_unet" in log.read_text()


@pytest.mark.triton
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopping_leaves_nothing(toy_repository: Path, toy_server: Served, temporary: Path, number: int) -> None:
    """Nothing but a second server of the same repository, which serves on."""
    with served(toy_repository) as server:
        pid = server.launcher.pid
        started = descendants(pid)
        assert len(started) >= 5  # The server and four Python processes.
        assert regions(pid)
        assert stop(server.launcher, number) == 0
    assert not running(started)
    assert not list(SHARED_MEMORY.glob(f"slime_{pid}_*"))
    assert not list(temporary.iterdir())
    assert toy_server.segment("toy", png(picture(10, 12))).shape == (10, 12)


@pytest.mark.triton
def test_stopping_while_starting(toy_repository: Path) -> None:
    launcher = launch(toy_repository)
    deadline = time.monotonic() + 30
    while not (started := descendants(launcher.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert stop(launcher) == 0
    assert not running(started)
    assert not regions(launcher.pid)


@pytest.mark.triton
def test_killed_launcher_takes_the_server_along(toy_repository: Path, temporary: Path) -> None:
    with served(toy_repository) as server:
        started = descendants(server.launcher.pid)
        server.launcher.kill()
        assert not running(started)
    assert not regions(server.launcher.pid)
    assert list(temporary.iterdir())  # Nobody was left to remove its folder: the next start does.
    with served(toy_repository) as server:
        (folder, log) = sorted(temporary.iterdir())
        assert (folder / "models").is_symlink() and log.name == f"{folder.name}.log"
        workspace.Workspace().close()
        assert sorted(temporary.iterdir()) == [folder, log]  # Of one that lives, nothing is removed.
        assert stop(server.launcher) == 0
    assert not list(temporary.iterdir())


@pytest.mark.triton
def test_a_large_log_begins_anew(toy_repository: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with served(toy_repository, "--log", str(log)):
        with log.open("r+b") as file:
            file.truncate(process.LARGEST_LOG + 1)  # A hole, which takes no room.
        deadline = time.monotonic() + 30
        while log.stat().st_size > process.LARGEST_LOG and time.monotonic() < deadline:
            time.sleep(0.05)
    assert (tmp_path / "log.1").stat().st_size > process.LARGEST_LOG
    written = log.read_bytes()
    assert 0 < len(written) < 1 << 20 and b"\0" not in written
