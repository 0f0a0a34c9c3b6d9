"""export/build.py --embedding shared: the graph once, then files; what it refuses."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from serving import ROOT
from slime_export.publish.maintenance import remove
from slime_repository import layout, shared_store


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build", ROOT / "export" / "build.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_graph_is_made_once(
    build: ModuleType, tmp_path: Path, make_segmenter: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, repository = make_segmenter(tmp_path), tmp_path / "repository"
    words = [str(folder), "--repository", str(repository), "--embedding", "shared", "--maps", "weighted"]
    assert build.main([*words, "--name", "one"]) == 0
    assert "tracing the UNet of shared_" in capsys.readouterr().out
    models = layout.models(repository)
    (group,) = layout.groups(repository)
    assert set(models) == {group, f"{group}_unet_weighted", "segmenters", "vae_encoder", "was"}
    for expected in ("published two version 1", "published two version 2"):
        assert build.main([*words, "--name", "two"]) == 0
        told = capsys.readouterr().out
        assert expected in told and "tracing" not in told and "100.000 %" in told
    assert layout.models(repository) == models and shared_store.names(repository) == ["one", "two"]
    assert shared_store.versions(repository, "two") == [1, 2]
    # The last one that goes takes the models along.
    for name in ("one", "two"):
        remove(repository, name, say=lambda _: None)
    assert layout.models(repository) == []


@pytest.mark.parametrize("more", [["--precision", "fp16"], ["--format", "tensorrt"], ["--accelerator", "cuda"]])
def test_what_is_not_there_in_the_shared_form_is_refused(
    build: ModuleType, more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(tmp_path), "--repository", str(tmp_path / "repository"), "--embedding", "shared", *more]
    assert build.main(words) == 2
    assert capsys.readouterr().err.startswith("error: --embedding shared: is exported as fp32 ONNX alone")
    assert not (tmp_path / "repository").exists()


def test_a_name_that_is_baked_in_already_is_refused(
    build: ModuleType,
    tmp_path: Path,
    make_segmenter: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, repository = make_segmenter(tmp_path), tmp_path / "repository"
    monkeypatch.setattr(layout, "segmenters", lambda _: ["car"])
    assert build.main([str(folder), "--repository", str(repository), "--embedding", "shared"]) == 2
    assert "segmenter car: is in repository" in capsys.readouterr().err
