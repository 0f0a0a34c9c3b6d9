"""From a training's state to an ordinary diffusers folder in fp16 safetensors."""

from __future__ import annotations

import copy
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from slime_backbone.autoencoder import known_scale
from slime_backbone.models import build_scheduler, build_text_encoder, build_tokenizer, build_unet, build_vae
from slime_backbone.training import TrainingError, read_state


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """What a diffusers folder holds."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDIMScheduler


def pipeline_of(state: Path) -> Pipeline:
    """The averaged weights of a state. Raises TrainingError when a part of the training is not there yet."""
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
    """unet/, vae/, text_encoder/, tokenizer/, scheduler/ under `folder`, each renamed into place when whole."""
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
