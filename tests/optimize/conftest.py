"""Tiny backbones, a painted picture, and the two entry scripts' `main`."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before diffusers is imported: nothing here may reach for a hub

import pytest
from PIL import Image

import backbones
from painting import ROOT, Files, Main, paint
from slime_optimize import Backbone, load_backbone
from slime_optimize.data.annotations import Example


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder of each kind. Tests that change a folder make their own."""
    return {kind: backbones.build(tmp_path_factory.mktemp(kind) / kind, kind) for kind in backbones.KINDS}


@pytest.fixture(scope="session")
def loaded(folders: dict[str, Path]) -> dict[str, Backbone]:
    return {kind: load_backbone(folder) for kind, folder in folders.items()}


@pytest.fixture(params=sorted(backbones.KINDS))
def backbone(request: pytest.FixtureRequest, loaded: dict[str, Backbone]) -> Backbone:
    """Each kind in turn."""
    return loaded[request.param]


@pytest.fixture
def example() -> Example:
    image, mask = paint()
    return Example(name="blocks", image_HW3=image, mask_HW=mask, digest="0" * 64)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """The painted picture on disk."""
    image, mask = paint()
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return Files(tmp_path / "image.png", tmp_path / "mask.png")


def _script(name: str) -> Main:
    spec = importlib.util.spec_from_file_location(f"optimize_{name}", ROOT / "optimize" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    main: Main = module.main
    return main


@pytest.fixture(scope="session")
def run() -> Main:
    return _script("run")


@pytest.fixture(scope="session")
def evaluate() -> Main:
    return _script("evaluate")


@pytest.fixture(scope="session")
def import_reference() -> Main:
    return _script("import_reference")


@pytest.fixture(scope="session")
def prepare() -> Main:
    return _script("prepare")
