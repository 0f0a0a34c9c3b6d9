"""The launcher's look at manifest.json: what it accepts, what it refuses, in one line and before a server starts."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving import launch
from slime_repository import manifest
from slime_repository.errors import RepositoryError


def fact(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for path in ("car/config.pbtxt", "car/1/mask.png", "car_unet/config.pbtxt", "car_unet/1/model.onnx"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    write(tmp_path, tmp_path.rglob("*"))
    return tmp_path


def write(repository: Path, files: Any, changing: dict[str, Any] | None = None) -> None:
    told = {path.relative_to(repository).as_posix(): fact(path) for path in files if path.is_file()}
    facts = {"format": 1, "files": told, "changing": changing or {}}
    (repository / manifest.FILE).write_text(json.dumps(facts))


def test_as_published(repository: Path) -> None:
    assert manifest.verify(repository)


def test_a_repository_of_before_there_were_manifests(tmp_path: Path) -> None:
    assert not manifest.verify(tmp_path)


def test_models_that_others_put_there_and_caches_are_not_looked_at(repository: Path) -> None:
    for path in ("mine/1/model.py", "car/1/__pycache__/x.pyc"):
        (repository / path).parent.mkdir(parents=True)
        (repository / path).write_text("")
    assert manifest.verify(repository)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda r: (r / "car_unet/1/model.onnx").write_text("car_unet/1/model.onnX"), "model.onnx is not what"),
        (lambda r: (r / "car/config.pbtxt").write_text("longer than it was"), "car/config.pbtxt is not what"),
        (lambda r: (r / "car/1/mask.png").unlink(), "car/1/mask.png is missing"),
        (lambda r: (r / "car_unet/1/more.py").write_text(""), "car_unet/1/more.py was never published"),
        (lambda r: (r / "manifest.json").write_text("{"), "manifest.json: cannot be read"),
        (lambda r: (r / "manifest.json").write_text('{"format": 2}'), "format 2, expected 1"),
    ],
)  # fmt: skip
def test_what_is_not_as_published_is_one_line(repository: Path, change: Callable[[Path], object], line: str) -> None:
    change(repository)
    with pytest.raises(RepositoryError, match=line) as refused:
        manifest.verify(repository)
    assert "--no-verify" in str(refused.value) and "\n" not in str(refused.value)


def test_either_side_of_a_change_under_way(repository: Path) -> None:
    config, mask, new = repository / "car/config.pbtxt", repository / "car/1/mask.png", repository / "car/2/mask.png"
    published = list(repository.rglob("*"))
    before = {path: path.read_bytes() for path in (config, mask)}
    new.parent.mkdir()
    for path, content in ((config, "next"), (new, "new")):
        path.write_text(content)
    changing = {"car/config.pbtxt": fact(config), "car/2/mask.png": fact(new), "car/1/mask.png": None}
    config.write_bytes(before[config])
    write(repository, [path for path in published if path.name != manifest.FILE], changing)
    for step in (lambda: None, new.unlink, mask.unlink, lambda: config.write_text("next")):
        step()
        assert manifest.verify(repository)
    config.write_text("neither")
    with pytest.raises(RepositoryError, match=r"car/config\.pbtxt is not what"):
        manifest.verify(repository)


def test_large_repositories_say_why_they_wait(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    manifest.verify(repository, lines.append)
    assert not lines
    monkeypatch.setattr(manifest, "LARGE", 10)
    manifest.verify(repository, lines.append)
    assert "verifying 0.0 GB" in lines[0]


@pytest.mark.triton
def test_the_launcher_refuses_a_damaged_repository(toy_repository: Path, tmp_path: Path) -> None:
    repository = Path(shutil.copytree(toy_repository, tmp_path / "repository"))
    write(repository, repository.glob("*/*/*.onnx"))
    network = repository / "toy_unet" / "1" / "model.onnx"
    network.write_bytes(network.read_bytes()[:-1] + b"?")
    launcher = launch(repository)
    out, error = launcher.communicate(timeout=60)
    assert (launcher.returncode, out) == (2, "")
    assert error.count("\n") == 1 and "toy_unet/1/model.onnx is not what was published" in error
