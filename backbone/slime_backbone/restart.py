"""Go on from trained weights where the state that they came from is gone: half precision, no optimiser's moments.

The weights folder keeps what that takes beside the models: `training.json` (steps, thinned histories, sessions) and
the tokenizer's vocabulary and merges.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel

from slime_backbone.autoencoder import SCALE_FILE
from slime_backbone.models import TOKENIZER_FILES
from slime_backbone.shards import thin
from slime_backbone.training import TrainingError, read_state, write_state

RECORD = "training.json"
ENTRIES = 400  # of each history


def write_record(state: Path, weights: Path) -> None:
    """What `begin` needs and the card tells, beside the weights of `state`."""
    record = {name: _told(read_state(state / f"{name}.pt")) for name in ("diffusion", "vae")}
    for name in TOKENIZER_FILES:
        shutil.copy(state / "tokenizer" / name, weights / "tokenizer" / name)
    beside = weights / f"{RECORD}.partial"
    beside.write_text(json.dumps(record) + "\n")
    beside.replace(weights / RECORD)


def _told(stored: dict[str, Any]) -> dict[str, Any]:
    rounded = [{k: round(v, 4) for k, v in entry.items()} for entry in thin(json.loads(stored["history"]), ENTRIES)]
    return {"step": stored["step"], "history": rounded, "sessions": json.loads(stored.get("sessions", "[]"))}


def begin(weights: Path, state: Path) -> int:
    """A state in `state` that training goes on from; returns its step. Never replaces one that is there.

    Raises TrainingError when there is one, or when `weights` was not written by train.py.
    """
    if (state / "diffusion.pt").exists():
        raise TrainingError(
            f"state {state}: already holds a training, expected none; leave out --begin to go on with it"
        )
    if not (weights / RECORD).exists():
        raise TrainingError(f"weights {weights}: has no {RECORD}, expected what train.py wrote")
    record = json.loads((weights / RECORD).read_text())
    unet = UNet2DConditionModel.from_pretrained(weights / "unet", torch_dtype=torch.float32)
    text_encoder = CLIPTextModel.from_pretrained(weights / "text_encoder", dtype=torch.float32)
    vae = AutoencoderKL.from_pretrained(weights / "vae", torch_dtype=torch.float32)
    (state / "tokenizer").mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copy(weights / "tokenizer" / name, state / "tokenizer" / name)
    (state / SCALE_FILE).write_text(json.dumps(vae.config.scaling_factor) + "\n")
    _write(torch.nn.ModuleDict({"vae": vae}), record["vae"], state / "vae.pt")
    _write(
        torch.nn.ModuleDict({"unet": unet, "text_encoder": text_encoder}), record["diffusion"], state / "diffusion.pt"
    )
    return int(record["diffusion"]["step"])


def _write(modules: torch.nn.ModuleDict, told: dict[str, Any], path: Path) -> None:
    weights = modules.state_dict()
    histories = {key: json.dumps(told[key]) for key in ("history", "sessions")}
    write_state({"modules": weights, "average": weights, "step": told["step"], **histories}, path)
