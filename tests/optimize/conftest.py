"""Tiny backbones, a painted picture, and the two entry scripts' `main`."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before diffusers is imported: nothing here may reach for a hub

import backbones
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from slime_optimize import Backbone, load_backbone
from slime_optimize.data import Example

ROOT = Path(__file__).resolve().parents[2]
Main = Callable[[Sequence[str]], int]


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


PARTS = ("background", "red", "green")


def paint(seed: int = 0) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """A noisy picture (70,90,3) of a red and a green block, and its mask."""
    image = np.random.default_rng(seed).integers(0, 80, (70, 90, 3), dtype=np.uint8)
    mask = np.zeros((70, 90), np.uint8)
    for part, (rows, columns) in enumerate(((slice(10, 50), slice(10, 40)), (slice(30, 60), slice(50, 80))), 1):
        image[rows, columns, part - 1] += 170
        mask[rows, columns] = part
    return image, mask


@pytest.fixture
def example() -> Example:
    image, mask = paint()
    return Example(name="blocks", image_HW3=image, mask_HW=mask, digest="0" * 64)


@dataclass(frozen=True)
class Files:
    image: Path
    mask: Path


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
