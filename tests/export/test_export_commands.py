"""export/repository.py: what it prints, its exit codes, and one clear line for each mistake."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from publishing import FakeServer, run

from slime_export.commands.repository import main, table
from slime_export.publish.lock import locked
from slime_repository import layout, listing

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """(*arguments) -> exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(each) for each in arguments])
        return (code, *capsys.readouterr())

    return call


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    run(tmp_path / "repository", parts=3)
    run(tmp_path / "repository", parts=4)
    run(tmp_path / "repository", "horse")
    return tmp_path / "repository"


def test_list_is_a_table(command: Command, repository: Path) -> None:
    code, out, _ = command("list", repository)
    assert code == 0
    header, _, car, horse = out.splitlines()
    assert header.split() == ["name", "version", "published", "parts", "precision", "form", "size", "kept"]
    assert car.startswith("car") and "4: part 0 part 1 part 2 part 3" in car and car.endswith("1 2")
    assert "baked" in horse and "fp32" in horse
    published = json.loads((repository / "car" / "2" / "record.json").read_text())["published"]
    assert published[:16].replace("T", " ") in car
    told = layout.parameters(repository / "car")
    assert told["version"] == "2" and told["published"][:16] == published[:16]


def test_list_for_scripts(command: Command, repository: Path) -> None:
    command("rollback", repository, "car")
    car, horse = json.loads(command("list", repository, "--json")[1])
    assert (car["name"], car["version"], car["rolled_back_to"], car["versions"]) == ("car", 3, 1, [2, 3])
    assert car["parts"] == ["part 0", "part 1", "part 2"]
    assert (horse["version"], horse["rolled_back_to"], horse["state"]) == (1, None, None)
    own = [*(repository / "car" / "3").iterdir(), *(repository / "car_unet" / "3").iterdir()]
    assert car["bytes"] == sum(path.stat().st_size for path in own)


def test_states_on_a_server(repository: Path) -> None:
    server = FakeServer(repository)
    server.load("car")
    assert [row.state for row in listing.rows(repository, server.states())] == ["ready", "unavailable"]
    run(repository, "car")
    assert [row.state for row in listing.rows(repository, server.states())] == ["ready with version 2", "unavailable"]
    assert table(listing.rows(repository, server.states())).splitlines()[0].endswith("state")


def test_a_server_that_is_down(command: Command, repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"127.0.0.1:{taken.getsockname()[1]}"
    code, out, error = command("rollback", repository, "car", "--url", url)
    assert (code, out) == (1, "")
    assert error.startswith(f"error: server {url}: ") and error.count("\n") == 1
    assert "no Triton server answers (Connection refused); start it, or leave --url out; nothing was changed" in error


def test_nothing_there(command: Command, tmp_path: Path) -> None:
    assert command("list", tmp_path)[:2] == (0, f"{tmp_path}: no segmenters\n")


def test_rollback_and_remove_say_what_they_did(command: Command, repository: Path) -> None:
    assert command("rollback", repository, "car")[:2] == (
        0,
        f"car serves version 1 again, as version 3, in {repository}\n",
    )
    assert command("remove", repository, "car")[:2] == (0, f"removed car, car_unet from {repository}\n")
    assert layout.segmenters(repository) == ["horse"]


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (("list", "{}/nothing"), 2, "no such folder; export/build.py makes one"),
        (("rollback", "{}/nothing", "car"), 2, "no such folder"),
        (("remove", "{}/nothing", "car"), 2, "no such folder"),
        (("rollback", "{}", "horse"), 2, "no version before the one that serves"),
        (("rollback", "{}", "car", "--to", "9"), 2, "no version 9"),
        (("remove", "{}", "lorry"), 2, "segmenters there: car, horse"),
        (("remove", "{}", "was"), 2, "car, horse cannot do without it"),
        (("remove", "{}", "car", "--url", "127.0.0.1:9"), 1, "server 127.0.0.1:9"),
        (("list", "{}", "--url", "127.0.0.1:9", "--admin-key-file", "{}/nothing"), 2, "nothing: cannot be read"),
        (("list", "{}", "--tls-key", "x"), 2, "expected both --tls-cert and --tls-key"),
    ],
)
def test_mistakes(command: Command, repository: Path, arguments: tuple[str, ...], code: int, line: str) -> None:
    got, out, error = command(*(each.format(repository) for each in arguments))
    assert (got, out) == (code, "")
    assert error.startswith("error: ") and error.count("\n") == 1
    assert line in error


def test_a_repository_that_stays_busy(command: Command, repository: Path) -> None:
    with locked(repository):
        code, _, error = command("remove", repository, "car", "--wait", "0.1")
    assert code == 1
    waiting, failed = error.splitlines()
    assert "another process is changing it; waiting for up to 0.1 s" in waiting
    assert failed.startswith("error: ") and "--wait" in failed


@pytest.mark.parametrize("old", ["--key-file", "--key", "--ca"])
def test_options_under_their_old_names(capsys: pytest.CaptureFixture[str], old: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["list", "repository", old, "file"])
    assert f"{old} has another name now: --" in capsys.readouterr().err
