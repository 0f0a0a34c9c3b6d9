"""Pictures from prompts: DDIM with classifier-free guidance, as any Stable Diffusion is sampled.

Legend: B batch, T tokens, D text width, S image side, h latent side.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from slime_backbone.models import LENGTH
from slime_optimize.backbone import Backbone

STEPS = 40
GUIDANCE = 3.0
SEED = 0
PROMPTS = (
    "a car , red body , black wheel , cyan window , yellow light , white plate",
    "a car , blue wheel , yellow body , black window , red light , yellow plate",
    "a car , white body , black wheel , blue window , orange light , no plate",
    "a car , purple body , gray wheel , pink window , white light , white plate",
    "a horse , brown head , brown leg , brown neck+torso , black tail",
    "a horse , white head , white leg , white neck+torso , yellow tail",
    "a horse , red head , green leg , blue neck+torso , orange tail",
    "a horse , black tail , gray neck+torso , pink leg , yellow head",
    "a face , tan face , tan ear , tan neck , tan nose , black hair , blue eye , red mouth , green cloth",
    "a face , dark face , dark ear , dark neck , dark nose , orange hair , brown eye , white cloth",
    "a face , pale face , pale ear , pale neck , pale nose , brown hair , pink mouth , purple cloth",
    "a face , green face , red ear , yellow nose , blue hair , white eye , black mouth , orange cloth",
)


@torch.no_grad()
def sample(
    backbone: Backbone,
    prompts: tuple[str, ...] = PROMPTS,
    *,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    seed: int = SEED,
) -> NDArray[np.uint8]:
    """Return a picture of each prompt, (B,S,S,3) uint8; the same seed gives the same ones on the same machine.

    answer = empty + guidance * (told - empty), where `told` is denoised with the prompt and `empty` without one.
    """
    generator = torch.Generator().manual_seed(seed)
    latents_B4hh = torch.randn(len(prompts), 4, backbone.latent_size, backbone.latent_size, generator=generator)
    text_BTD = _text(backbone, [""] * len(prompts) + list(prompts))
    backbone.scheduler.set_timesteps(steps)
    for time in tqdm(backbone.scheduler.timesteps, desc="samples", mininterval=5):
        empty, told = backbone.unet(latents_B4hh.repeat(2, 1, 1, 1), time, text_BTD).sample.chunk(2)
        latents_B4hh = backbone.scheduler.step(empty + guidance * (told - empty), time, latents_B4hh).prev_sample
    return decode(backbone, latents_B4hh)


@torch.no_grad()
def decode(backbone: Backbone, latents_B4hh: torch.Tensor) -> NDArray[np.uint8]:
    """Return the pictures of scaled latents, (B,S,S,3) uint8."""
    pixels_B3SS = backbone.vae.decode(latents_B4hh / backbone.vae.config.scaling_factor).sample
    scaled = ((pixels_B3SS + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    images: NDArray[np.uint8] = scaled.permute(0, 2, 3, 1).numpy()
    return images


def _text(backbone: Backbone, prompts: list[str]) -> torch.Tensor:
    ids = backbone.tokenizer(
        prompts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
    text_BTD: torch.Tensor = backbone.text_encoder(ids)[0]
    return text_BTD
