"""From a training's state to an ordinary diffusers folder in fp16 safetensors, and back to a state that goes on.

The way back is for weights whose state is gone: they are in half precision, and without the optimiser's moments. For it
the folder keeps, beside the models, `training.json` (steps, thinned histories, sessions) and the tokenizer's vocabulary
and merges.
"""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from slime_backbone.autoencoder import SCALE_FILE, known_scale
from slime_backbone.models import (
    TOKENIZER_FILES,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    build_vae,
)
from slime_backbone.shards import thin
from slime_backbone.training import TrainingError, read_state, write_state
from slime_optimize.files import write_text


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """What a diffusers folder holds."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDIMScheduler


def pipeline_of(state: Path) -> Pipeline:
    """Return the averaged weights of a state. Raises TrainingError when a part of the training is not there yet."""
    diffusion, vae_state, scale = read_state(state / "diffusion.pt"), read_state(state / "vae.pt"), known_scale(state)
    if scale is None or not (state / "tokenizer" / "vocab.json").exists():
        raise TrainingError(
            f"state {state}: has no latents or no tokenizer; train with backbone/train.py --state {state}"
        )
    tokenizer = build_tokenizer((), state / "tokenizer")
    unet, text_encoder, vae = build_unet(), build_text_encoder(tokenizer), build_vae()
    nn.ModuleDict({"unet": unet, "text_encoder": text_encoder}).load_state_dict(diffusion["average"])
    nn.ModuleDict({"vae": vae}).load_state_dict(vae_state["average"])
    vae.register_to_config(scaling_factor=scale)
    return Pipeline(
        unet=unet.eval(),
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        scheduler=build_scheduler(),
    )


def save_pipeline(folder: Path, pipeline: Pipeline) -> None:
    """Write unet/, vae/, text_encoder/, tokenizer/, scheduler/ under `folder`, each renamed into place when whole."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="new-") as staged:
        stage = Path(staged)
        for name in ("unet", "vae", "text_encoder"):
            half = copy.deepcopy(getattr(pipeline, name)).to(
                "cpu", torch.float16, memory_format=torch.contiguous_format
            )
            half.save_pretrained(stage / name, safe_serialization=True)
        pipeline.tokenizer.save_pretrained(stage / "tokenizer")
        pipeline.scheduler.save_pretrained(stage / "scheduler")
        for part in stage.iterdir():
            shutil.rmtree(folder / part.name, ignore_errors=True)
            part.replace(folder / part.name)


RECORD = "training.json"
ENTRIES = 400  # of each history


def write_record(state: Path, weights: Path) -> None:
    """Write what `begin` needs and the card says beside the weights of `state`."""
    record = {name: _told(read_state(state / f"{name}.pt")) for name in ("diffusion", "vae")}
    for name in TOKENIZER_FILES:
        shutil.copy(state / "tokenizer" / name, weights / "tokenizer" / name)
    write_text(weights / RECORD, json.dumps(record) + "\n")


def _told(stored: dict[str, Any]) -> dict[str, Any]:
    rounded = [{k: round(v, 4) for k, v in entry.items()} for entry in thin(json.loads(stored["history"]), ENTRIES)]
    return {"step": stored["step"], "history": rounded, "sessions": json.loads(stored.get("sessions", "[]"))}


def begin(weights: Path, state: Path) -> int:
    """Write a state in `state` that training goes on from; return its step. One that is there is never replaced.

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
