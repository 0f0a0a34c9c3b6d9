"""The versions that pyproject.toml declares are the ones that `make test-lowest` and `make test` install."""

from __future__ import annotations

import re
from itertools import chain

import tomllib

from painting import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDS_A_GPU = {"onnxruntime-gpu", "tensorrt"}
# make test-integrations installs each in an environment of its own.
INTEGRATED = {"cvat-sdk", "cvat-cli", "fiftyone", "napari"}
NEEDS_AN_ACCOUNT = {"gcsfs", "adlfs"}  # there is no server for a test of them
TOOLS = {"build", "hatchling", "ruff", "mypy"}  # no test of `make test-lowest` runs them


def normal(package: str) -> str:
    """A package's name as pip compares them."""
    return package.lower().replace("_", "-")


def pins(name: str) -> dict[str, str]:
    """Package -> version of a constraints file, names as `normal` writes them."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return {normal(package): version for package, _, version in (line.partition("==") for line in lines if line)}


def floors() -> dict[str, str]:
    """Package -> the lowest version that any extra declares."""
    found: dict[str, str] = {}
    for requirement in chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()):
        match = re.match(r"([\w-]+)(?:\[[\w,]+\])?(?:>=|==)([\w.]+)", requirement)
        if match and match[1] != "slime-serve":
            package, version = normal(match[1]), match[2]
            assert found.setdefault(package, version) == version, f"{package}: two floors"
    return found


def test_every_floor_is_tested() -> None:
    lowest = pins("constraints-lowest.txt")
    declared = {
        package: version
        for package, version in floors().items()
        if package not in NEEDS_A_GPU | INTEGRATED | NEEDS_AN_ACCOUNT | TOOLS
    }
    assert len(declared) > 20
    for package, version in declared.items():
        assert lowest.get(package, "").startswith(version), (
            f"{package}: {version} is declared, {lowest.get(package)} tested"
        )


def test_every_package_has_a_tested_version() -> None:
    assert set(floors()) - NEEDS_A_GPU - INTEGRATED - NEEDS_AN_ACCOUNT <= set(pins("constraints.txt"))
