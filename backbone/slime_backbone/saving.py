"""Write the trained parts as an ordinary diffusers folder in fp16 safetensors."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer


def save_pipeline(
    folder: Path,
    *,
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    scheduler: DDIMScheduler,
) -> None:
    """unet/, vae/, text_encoder/, tokenizer/, scheduler/ under `folder`, each renamed into place when whole."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="new-") as staged:
        stage = Path(staged)
        for name, model in (("unet", unet), ("vae", vae), ("text_encoder", text_encoder)):
            half = copy.deepcopy(model).to("cpu", torch.float16, memory_format=torch.contiguous_format)
            half.save_pretrained(stage / name, safe_serialization=True)
        tokenizer.save_pretrained(stage / "tokenizer")
        scheduler.save_pretrained(stage / "scheduler")
        for part in stage.iterdir():
            shutil.rmtree(folder / part.name, ignore_errors=True)
            os.replace(part, folder / part.name)
