"""Tiny backbones for the benchmarks."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before diffusers is imported: nothing here may reach for a hub

import pytest

import backbones


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return one folder of each kind, with a tiny encoder in that of SD 1.5."""
    made = {kind: backbones.build(tmp_path_factory.mktemp(kind) / kind, kind) for kind in backbones.KINDS}
    backbones.build_tiny(made["sd15"] / "tiny_vae")
    return made
