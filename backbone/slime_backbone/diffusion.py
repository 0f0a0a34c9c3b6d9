"""Train the UNet and its text encoder together: denoise latents, told by captions what is where.

Legend: B batch, M scenes, T tokens.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from slime_backbone.entropy import effective_tokens
from slime_backbone.models import LENGTH, build_text_encoder, build_unet
from slime_backbone.training import Run, share

DROP_CAPTION = 0.1
WATCH_EVERY = 250  # steps between measurements of the attention's sharpness


def train_diffusion(
    latents_M4hw: NDArray[np.float16],
    captions: list[str],
    tokenizer: CLIPTokenizer,
    scheduler: DDIMScheduler,
    folder: Path,
    steps: int,
    device: torch.device,
    *,
    batch: int = 16,
    rate: float = 8e-4,
) -> tuple[UNet2DConditionModel, CLIPTextModel, list[dict[str, float]]]:
    """The averaged UNet and text encoder, and the history of the losses."""
    torch.manual_seed(0)
    unet = build_unet().to(device, memory_format=torch.channels_last)
    text_encoder = build_text_encoder(tokenizer).to(device)
    modules = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    optimiser = torch.optim.AdamW(modules.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    run = Run(modules=modules, optimiser=optimiser, path=folder / "diffusion.pt", peak_rate=rate)
    tokens_MT = torch.tensor(tokens(tokenizer, ["", *captions]))

    def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        process, processes = share()
        rng = np.random.default_rng([102, step, process])
        count = batch // processes
        chosen = rng.integers(0, len(latents_M4hw), count)
        said = np.where(rng.random(count) < DROP_CAPTION, 0, chosen + 1)
        clean = torch.from_numpy(latents_M4hw[chosen].astype(np.float32)).to(device)
        noise = torch.from_numpy(rng.standard_normal(clean.shape, np.float32)).to(device)
        times = torch.from_numpy(timesteps(rng, count)).to(device)
        noisy = scheduler.add_noise(clean, noise, times).contiguous(memory_format=torch.channels_last)
        target = scheduler.get_velocity(clean, noise, times)
        text_BTD = text_encoder(tokens_MT[said].to(device))[0]
        figures: dict[str, float] = {}
        if step % WATCH_EVERY == 0:
            figures = effective_tokens(unet, noisy[:4], times[:4], text_BTD[:4])
        return functional.mse_loss(unet(noisy, times, text_BTD).sample, target), figures

    run.go(steps, loss_of)
    run.use_average()
    return unet.eval(), text_encoder.eval(), run.history


def timesteps(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    """(count,) timesteps, mostly from the middle, where what a caption says decides what is painted where."""
    middle = 1000 / (1 + np.exp(0.4 - rng.standard_normal(count)))
    anywhere = rng.uniform(0, 1000, count)
    return np.where(rng.random(count) < 0.15, anywhere, middle).astype(np.int64)


def tokens(tokenizer: CLIPTokenizer, prompts: list[str]) -> list[list[int]]:
    """LENGTH token ids per prompt, padded and cut as Stable Diffusion does."""
    ids: list[list[int]] = tokenizer(prompts, padding="max_length", max_length=LENGTH, truncation=True).input_ids
    return ids
