"""The tokenizer of a few captions, a state of untrained models, and the entry scripts' `main`."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType

os.environ["HF_HUB_OFFLINE"] = "1"  # before diffusers is imported: nothing here may reach for a hub

import pytest
import torch
from torch import nn
from transformers import CLIPTokenizer

from painting import ROOT
from slime_backbone.autoencoder import SCALE_FILE
from slime_backbone.models import build_text_encoder, build_tokenizer, build_unet, build_vae
from slime_backbone.scene import KINDS, scene
from slime_backbone.training import write_state


@pytest.fixture(scope="session")
def captions() -> list[str]:
    """Of 150 scenes, which between them say every word there is."""
    return [scene(kind, "backbone", i, size=16).caption for i in range(50) for kind in KINDS]


@pytest.fixture(scope="session")
def tokenizer_folder(captions: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(captions, folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(tokenizer_folder, local_files_only=True)


@pytest.fixture(scope="session")
def state(captions: list[str], tokenizer: CLIPTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole state at step 7 of models that never learned, of the true sizes. Nothing may write to it."""
    folder = tmp_path_factory.mktemp("state")
    build_tokenizer(captions, folder / "tokenizer")
    torch.manual_seed(0)
    models = {
        "diffusion": nn.ModuleDict({"unet": build_unet(), "text_encoder": build_text_encoder(tokenizer)}),
        "vae": nn.ModuleDict({"vae": build_vae()}),
    }
    for name, modules in models.items():
        weights = modules.state_dict()
        history = json.dumps([{"step": i + 1, "loss": 0.5, "l1": 0.1, "attn1-up3.1": 9.0} for i in range(7)])
        write_state({"modules": weights, "average": weights, "step": 7, "history": history}, folder / f"{name}.pt")
    (folder / SCALE_FILE).write_text("0.5\n")
    return folder


def script(name: str) -> ModuleType:
    """An entry script of backbone/ as a module."""
    spec = importlib.util.spec_from_file_location(f"backbone_{name}", ROOT / "backbone" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up their annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def train_script() -> ModuleType:
    return script("train")


@pytest.fixture(scope="session")
def distil_script() -> ModuleType:
    return script("distil")


@pytest.fixture(scope="session")
def scenes_script() -> ModuleType:
    return script("scenes")


@pytest.fixture(scope="session")
def card_script() -> ModuleType:
    return script("card")
