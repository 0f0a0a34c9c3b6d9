"""Which package may import which: read from the source, so that no arrow can quietly turn round."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = {
    "slime_was": "model_repository/was/slime_was",
    "slime_image": "model_repository/preprocess/slime_image",
    "slime_store": "model_repository/segmenters/slime_store",
    "slime_optimize": "optimize/slime_optimize",
    "slime_repository": "export/slime_repository",
    "slime_export": "export/slime_export",
    "slime_serve": "serve/slime_serve",
    "slime_client": "client/slime_client",
    "slime_backbone": "backbone/slime_backbone",
    "slime_studio": "studio/slime_studio",
    "slime_fleet": "fleet/slime_fleet",
    "slime_cli": "cli/slime_cli",
}
ALLOWED: dict[str, set[str]] = {
    "slime_was": set(),
    "slime_image": set(),
    "slime_store": set(),
    "slime_optimize": {"slime_was", "slime_image"},
    "slime_repository": {"slime_was", "slime_image", "slime_store"},
    "slime_export": {"slime_was", "slime_image", "slime_store", "slime_optimize", "slime_repository", "slime_client"},
    "slime_serve": {"slime_was", "slime_store", "slime_repository"},
    "slime_client": set(),
    "slime_backbone": {"slime_was", "slime_image", "slime_optimize"},
    "slime_studio": {
        "slime_was",
        "slime_image",
        "slime_optimize",
        "slime_export",
        "slime_repository",
        "slime_client",
    },
    "slime_fleet": {"slime_image", "slime_optimize", "slime_export", "slime_repository", "slime_client"},
    "slime_cli": {
        "slime_backbone",
        "slime_client",
        "slime_optimize",
        "slime_export",
        "slime_image",
    },  # demo.py and segment.py
}
HEAVY = {"torch", "diffusers", "transformers", "onnx", "onnxruntime", "scipy"}
LIGHT = {
    "slime_was": {"numpy"},
    "slime_image": {"numpy", "PIL", "pillow_heif"},
    "slime_store": {"numpy", "safetensors"},
    "slime_client": {"numpy", "PIL", "pillow_heif", "tritonclient", "grpc", "pycocotools", "contourpy", "av", "cv2"},
}
# Other people's tools: imported in the client's integrations alone, which the rest of it imports nowhere.
INTEGRATED = {"cvat_sdk", "fiftyone", "napari", "magicgui"}


def imported(file: Path) -> set[str]:
    """Top-level names of every module that `file` imports, wherever the statement stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


def imported_by(package: str) -> set[str]:
    files = list((ROOT / OURS[package]).rglob("*.py"))
    assert files, f"{package} has no files: has it moved?"
    return set().union(*map(imported, files))


@pytest.mark.parametrize("package", OURS)
def test_arrows_run_one_way(package: str) -> None:
    others = imported_by(package) & OURS.keys() - {package}
    assert others <= ALLOWED[package]


@pytest.mark.parametrize("package", LIGHT)
def test_light_packages_stay_light(package: str) -> None:
    foreign = imported_by(package) - set(sys.stdlib_module_names) - OURS.keys()
    assert foreign - INTEGRATED <= LIGHT[package]
    assert not foreign & HEAVY


def test_integrations_are_imported_by_nobody() -> None:
    folder = ROOT / OURS["slime_client"]
    for file in folder.rglob("*.py"):
        if file.parent.name != "integrations":
            assert not imported(file) & INTEGRATED
            assert "slime_client.integrations" not in file.read_text()


@pytest.mark.parametrize("model", ["preprocess", "was"])
def test_served_models_need_numpy_and_their_own_package(model: str) -> None:
    found = imported(ROOT / "model_repository" / model / "1" / "model.py")
    assert not found & HEAVY
    own = {"preprocess": "slime_image", "was": "slime_was"}[model]
    assert found & OURS.keys() == {own}


def test_entry_scripts_stand_alone_beside_their_package() -> None:
    """A stray module beside a script would shadow the standard library for everything the script imports."""
    scripts = {path for folder in ("optimize", "export", "serve", "backbone") for path in (ROOT / folder).glob("*.py")}
    names = [path.name for path in scripts]
    assert len(names) == len(set(names))
    assert not {path.stem for path in scripts} & set(sys.stdlib_module_names)


def test_no_test_imports_from_another() -> None:
    """What tests share stands in a module of its own, so that running one file collects no other's tests."""
    for path in (ROOT / "tests").rglob("*.py"):
        assert not {name for name in imported(path) if name.startswith("test_")}, path
