"""What the README and the pages of docs/ tell people to type is run, in their order; what cannot be run says why."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import commands
import documented
from documented import Command
from painting import ROOT
from serving import FREE_PORTS, first_line

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
README = (ROOT / "README.md").read_text()
MINUTES = 5
COMMANDS = [command for page in documented.PAGES for command in documented.commands(page)]
RUN = [command for command in COMMANDS if command.why_not_run is None]


class Terminal:
    """A folder to type in, and the server that a command has started there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url, self.http = "localhost:8001", "localhost:8000"
        self._server: subprocess.Popen[str] | None = None

    @property
    def is_serving(self) -> bool:
        return self._server is not None

    def type(self, command: Command) -> str:
        """Run a command; returns what it printed. A server stays until the next one, or the end."""
        serving = re.match(r"slime serve|python serve/launch.py", command.line)
        needed = serving or command.line.startswith(("slime repository push", "slime fleet segment"))
        if needed and not (self.folder / "repository" / "car").exists():  # The guide's last command has removed it.
            self.type(Command(command.page, "slime export segmenters/car --repository REPO"))
        documented.prepare(command, self.folder)
        words = command.runnable(self.url, self.http)
        if serving:
            return self._serve(words)
        if command.needs_torch:
            done = commands.run(words[words[0] == sys.executable :], cwd=self.folder, timeout=MINUTES * 60)
        else:
            done = subprocess.run(words, cwd=self.folder, capture_output=True, text=True, timeout=MINUTES * 60)
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        return done.stdout + done.stderr

    def _serve(self, words: list[str]) -> str:
        self.stop()
        self._server = subprocess.Popen(
            [*words, *FREE_PORTS, "--threads", "1"], cwd=self.folder, stdout=subprocess.PIPE, text=True
        )
        line = first_line(self._server)
        assert line.startswith("ready "), f"{' '.join(words)}: {line!r}"
        said = dict(word.split("=", 1) for word in line.split()[1:])
        self.url, self.http = said["grpc"], said["http"]
        return line

    def stop(self) -> None:
        if self._server is not None:
            self._server.send_signal(signal.SIGTERM)
            self._server.communicate(timeout=60)
            self._server = None


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """One folder for all pages, in whose order they are run: a page may use what the README's commands made."""
    made = Terminal(documented.make_workspace(tmp_path_factory.mktemp("documented")))
    yield made
    made.stop()


def named(command: Command) -> str:
    return f"{command.page}: {command.line[:60]}"


@pytest.mark.triton
@pytest.mark.slow
@pytest.mark.parametrize("command", RUN, ids=named)
def test_a_documented_command_runs(command: Command, terminal: Terminal) -> None:
    terminal.type(command)


@pytest.mark.triton
@pytest.mark.slow
def test_the_clients_lines_run(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the server that the commands before have left, or that of the page where none was typed before."""
    if not terminal.is_serving:
        for command in [each for each in RUN if each.page == "README.md"]:
            terminal.type(command)
    (snippet,) = re.findall(r"^```python\n(.*?)^```", README, re.S | re.M)
    monkeypatch.chdir(terminal.folder)
    exec(compile(snippet.replace("localhost:8001", terminal.url), "README.md", "exec"), {})
    assert (terminal.folder / "photo-parts.png").is_file()
    assert (terminal.folder / "photo-overlay.jpg").is_file()


@pytest.mark.triton
@pytest.mark.slow
def test_the_protocols_lines_run(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nothing was typed before."""
    if not (terminal.folder / "answer").exists():
        main_path = [each for each in RUN if each.page == "README.md"][:2]
        for command in main_path + [each for each in RUN if each.page == "docs/protocol.md"]:
            terminal.type(command)
    monkeypatch.chdir(terminal.folder)
    page = (ROOT / "docs" / "protocol.md").read_text()
    for snippet in re.findall(r"^```python\n(.*?)^```", page, re.S | re.M):
        exec(compile(snippet.replace("localhost:8000", terminal.http), "docs/protocol.md", "exec"), {})
    answer = (terminal.folder / "answer").read_bytes()
    told, _ = json.JSONDecoder().raw_decode(answer.decode("latin-1"))
    outputs = {each["name"]: each for each in told["outputs"]}
    assert outputs["MASK"]["datatype"] == "UINT8" and outputs["SCORES"]["datatype"] == "FP32"
    height, width = outputs["MASK"]["shape"]
    assert outputs["MASK"]["parameters"]["binary_data_size"] == height * width
    assert (terminal.folder / "input.json").is_file()


def test_the_main_path_is_among_what_is_run() -> None:
    first = [command.line.split()[1] for command in RUN if command.page == "README.md"]
    assert first[:4] == ["optimize", "export", "serve", "segment"]


@pytest.mark.parametrize("pattern", documented.NOT_RUN)
def test_every_exception_is_still_needed(pattern: str) -> None:
    assert [command for command in COMMANDS if re.match(pattern, command.line)], "no page has such a command any more"


def test_every_make_target_is_in_the_makefile() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    targets = {command.line.split()[1] for command in COMMANDS if command.line.startswith("make ")}
    targets |= set(re.findall(r"run: make ([\w-]+)", workflow)) | set(re.findall(r"`make ([\w-]+)", CONTRIBUTING))
    assert {"demo", "test", "test-fast", "test-lowest", "test-client", "lint"} <= targets
    makefile = (ROOT / "Makefile").read_text()
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target


@pytest.mark.parametrize("page", documented.PAGES)
def test_every_file_that_a_page_points_at_is_there(page: str) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", (ROOT / page).read_text()):
        if not target.startswith("http"):
            assert ((ROOT / page).parent / target).exists(), target
