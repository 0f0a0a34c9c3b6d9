"""The `slime` command: its page, its sub-commands, what they import, and what it says where a package is missing."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module

import pytest
import tomllib
import torch

from painting import ROOT
from slime_cli.main import COMMANDS, help_text, main
from slime_optimize.backbone import embedded_folder
from slime_optimize.backbone_folder import load_models

HEAVY = ("torch", "diffusers", "transformers", "onnx", "onnxruntime", "scipy", "matplotlib")


def imported_by(*words: str) -> set[str]:
    """Names of the modules in memory after `slime WORDS`."""
    code = (
        "import sys\nfrom slime_cli.main import main\n"
        f"try:\n    main({list(words)!r})\nexcept SystemExit:\n    pass\n"
        "print('imported:', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("imported:")[2].split())


def test_help_begins_with_the_main_path_in_four_lines() -> None:
    lines = [line for line in help_text().splitlines() if line.startswith("  slime ")]
    assert [line.split()[1] for line in lines[:4]] == ["optimize", "export", "serve", "segment"]
    assert max(map(len, help_text().splitlines())) <= 120


def test_help_explains_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == main([]) == 0
    shown = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"  {name}" in shown and command.meaning in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_its_own_usage(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: slime {name} ")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_wrong_option_is_refused_in_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([name, "--no-such-option", "x"])
    out, error = capsys.readouterr()
    assert not out and error.count("\n") == 1
    assert error.startswith("error: ") and error.endswith(f"; slime {name} --help shows the options\n")


@pytest.mark.parametrize("words", [("--help",), ("segment", "--help"), ("serve", "--help")])
def test_light_commands_import_nothing_heavy(words: tuple[str, ...]) -> None:
    found = imported_by(*words)
    assert "slime_cli.main" in found
    assert not found & set(HEAVY)


def test_help_imports_no_other_package_of_ours() -> None:
    assert {name.partition(".")[0] for name in imported_by("--help") if name.startswith("slime_")} == {"slime_cli"}


def test_an_unknown_command_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["segmnt"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: slime: got 'segmnt', expected one of optimize, ") and told.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("optimize", "torch", "optimize"),
        ("optimize", "jinja2", "optimize"),
        ("evaluate", "pycocotools", "optimize"),
        ("prepare", "scipy", "optimize"),
        ("export", "onnx", "export"),
        ("repository", "tritonclient", "export"),
        ("serve", "safetensors", "serve"),
        ("segment", "tritonclient", "client"),
        ("segment", "tritonclient.grpc", "client"),
        ("segment", "PIL", "client"),
        ("studio", "starlette", "studio"),
        ("studio", "uvicorn", "studio"),
        ("fleet", "ray", "fleet"),
        ("fleet", "pyarrow", "fleet"),
    ],
)
def test_a_missing_package_is_told_with_the_line_that_installs_it(name: str, package: str, extra: str) -> None:
    """Before anything is done; what a command needs only for some inputs has its test beside that command."""
    hidden = f"import sys; sys.modules[{package!r}] = None; from slime_cli.main import main; sys.exit(main([{name!r}]))"
    done = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: slime {name}: the package of module {package.partition('.')[0]} is not installed; "
        f"run: pip install 'slime-serve[{extra}]'\n"
    )


def test_a_backbone_is_not_blamed_for_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match="transformers"):
        load_models(embedded_folder(), "cpu", torch.float32)


def test_the_clients_own_program_says_what_it_needs(capfd: pytest.CaptureFixture[str]) -> None:
    code = "import sys; sys.modules['tritonclient'] = None; from slime_cli.main import segment; sys.exit(segment())"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 2
    assert capfd.readouterr().err.endswith("run: pip install 'slime-serve[client]'\n")
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['PIL'] = None; import slime_client"], check=False
    )
    assert done.returncode == 1
    assert capfd.readouterr().err.endswith("run: pip install 'slime-serve[client]'\n")


def test_every_extra_that_is_named_exists() -> None:
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    folders = (
        "optimize",
        "export",
        "serve",
        "client",
        "backbone",
        "studio",
        "fleet",
        "cli",
        "model_repository",
        "benchmarks",
        "docs",
    )
    pages = [*ROOT.glob("*.md"), *(path for folder in folders for path in (ROOT / folder).rglob("*.[mp][dy]"))]
    named = {
        name
        for path in pages
        for names in re.findall(r"slime-serve\[([\w,]+)\]", path.read_text())
        for name in names.split(",")
    }
    assert {"client", "export", "serve"} <= named <= extras


def test_a_missing_module_of_ours_is_a_defect_and_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, COMMANDS["segment"].module, None)
    with pytest.raises(ModuleNotFoundError):
        main(["segment"])


def test_every_module_of_the_table_has_a_main() -> None:
    for command in COMMANDS.values():
        assert callable(import_module(command.module).main)


def test_an_old_python_is_refused_but_for_the_client(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 13))
    assert main(["optimize"]) == 2
    assert "needs Python 3.11 or newer, got 3.10" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["segment", "--help"])
    assert ended.value.code == 0
