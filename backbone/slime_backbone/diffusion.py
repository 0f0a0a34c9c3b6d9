"""Train the UNet and its text encoder together: denoise latents, told by captions what is where.

On CUDA the corpus lives on the device, the forward pass runs in bfloat16 and nothing waits for a loss to be read; on
a CPU everything is float32.

Legend: B batch, M scenes, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from slime_backbone.entropy import effective_tokens
from slime_backbone.models import LENGTH, build_text_encoder, build_unet
from slime_backbone.training import Figures, Run, share

DROP_CAPTION = 0.1
WATCH_EVERY = 250  # steps between measurements of the attention's sharpness


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the device decides: its batch, and the rate and warm-up that suit the batch."""

    batch: int = 16
    rate: float = 8e-4
    warmup: int = 100
    coarse: int = 2700  # first steps at half the latents' side: twice the batch in half the time
    compile: bool = False  # torch.compile: minutes to start, a few times as fast on a GPU

    def __post_init__(self) -> None:
        if self.batch < 1 or self.rate <= 0 or self.warmup < 1:
            raise ValueError(f"recipe: got {self}, expected a batch and warm-up of at least 1 and a positive rate")

    @classmethod
    def for_device(cls, device: torch.device) -> Recipe:
        """Measured on CPUs; for CUDA an estimate: sixteen times the batch, about twice the rate."""
        return cls(batch=256, rate=1.5e-3, warmup=500, coarse=0) if device.type == "cuda" else cls()


def train_diffusion(
    latents_M4hw: NDArray[np.float16],
    captions: list[str],
    tokenizer: CLIPTokenizer,
    scheduler: DDIMScheduler,
    folder: Path,
    steps: int,
    device: torch.device,
    *,
    recipe: Recipe,
    seconds: float = math.inf,
) -> int:
    """Train up to step `steps` or for `seconds`; the state is in `folder`/diffusion.pt; gives the step reached."""
    torch.manual_seed(0)
    unet = build_unet().to(device, memory_format=torch.channels_last)
    text_encoder = build_text_encoder(tokenizer).to(device)
    modules = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    cuda = device.type == "cuda"
    optimiser = torch.optim.AdamW(modules.parameters(), lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.0, fused=cuda)
    run = Run(
        modules=modules,
        optimiser=optimiser,
        path=folder / "diffusion.pt",
        peak_rate=recipe.rate,
        warmup=recipe.warmup,
        facts={"batch": recipe.batch, "rate": recipe.rate, "scenes": len(latents_M4hw)},
    )
    loss_of = Denoising(
        latents_M4hw=torch.from_numpy(latents_M4hw).to(device),
        tokens_MT=torch.tensor(tokens(tokenizer, ["", *captions]), device=device),
        unet=unet,
        text_encoder=text_encoder,
        scheduler=scheduler,
        recipe=recipe,
    )
    run.go(steps, loss_of, seconds)
    return run.step


@dataclass(kw_only=True)
class Denoising:
    """The loss of one batch. Row 0 of `tokens_MT` is the empty caption, row m + 1 belongs to scene m."""

    latents_M4hw: torch.Tensor
    tokens_MT: torch.Tensor
    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    scheduler: DDIMScheduler
    recipe: Recipe

    def __post_init__(self) -> None:
        self.device = self.latents_M4hw.device
        self.cuda = self.device.type == "cuda"
        # Averaging 2 x 2 latents takes away some of their variance; what was trained at unit variance wants it back.
        sample = self.latents_M4hw[:512].float()
        self.coarse_gain = float(sample.std() / functional.avg_pool2d(sample, 2).std())
        self.denoise: Callable[..., Any] = torch.compile(self.unet) if self.recipe.compile else self.unet

    def __call__(self, step: int) -> tuple[torch.Tensor, Figures]:
        process, processes = share()
        rng = np.random.default_rng([102, step, process])
        coarse = step < self.recipe.coarse
        count = self.recipe.batch * (2 if coarse else 1) // processes
        chosen = rng.integers(0, len(self.latents_M4hw), count)
        said = np.where(rng.random(count) < DROP_CAPTION, 0, chosen + 1)
        clean = self.latents_M4hw[self._there(chosen)].float()
        if coarse:
            clean = functional.avg_pool2d(clean, 2) * self.coarse_gain
        noise = self._noise(rng, clean.shape)
        times = self._there(timesteps(rng, count))
        noisy = self.scheduler.add_noise(clean, noise, times).contiguous(memory_format=torch.channels_last)
        target = self.scheduler.get_velocity(clean, noise, times)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.cuda):
            text_BTD = self.text_encoder(self.tokens_MT[self._there(said)])[0]
            answer = self.denoise(noisy, times, text_BTD).sample
        figures: dict[str, float] = {}
        if step % WATCH_EVERY == 0:
            figures = effective_tokens(self.unet, noisy[:4], times[:4], text_BTD[:4].float())
        return functional.mse_loss(answer.float(), target), figures

    def _there(self, numbers_B: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(numbers_B).to(self.device, non_blocking=True)

    def _noise(self, rng: np.random.Generator, shape: torch.Size) -> torch.Tensor:
        """Of the step and the process alone; on CUDA drawn there, because a CPU would keep the device waiting."""
        if not self.cuda:
            return torch.from_numpy(rng.standard_normal(shape, np.float32))
        generator = torch.Generator(self.device).manual_seed(int(rng.integers(2**62)))
        return torch.randn(shape, generator=generator, device=self.device)


def timesteps(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    """(count,) timesteps, mostly high ones.

    Latents this small show a part's colour through most noise; only above it must the caption be asked.
    """
    high = 1000 / (1 + np.exp(-0.6 - rng.standard_normal(count)))
    anywhere = rng.uniform(0, 1000, count)
    return np.where(rng.random(count) < 0.25, anywhere, high).astype(np.int64)


def tokens(tokenizer: CLIPTokenizer, prompts: list[str]) -> list[list[int]]:
    """LENGTH token ids per prompt, padded and cut as Stable Diffusion does."""
    ids: list[list[int]] = tokenizer(prompts, padding="max_length", max_length=LENGTH, truncation=True).input_ids
    return ids
