"""Train the VAE on crops, then turn the whole corpus into latents once.

Legend: B batch, C crop side, M scenes.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from tqdm import trange

from slime_backbone.corpus import Corpus
from slime_backbone.models import LATENT, build_vae
from slime_backbone.training import Run

CROP = 64  # the VAE is convolutional, and a crop costs a quarter of a scene
BATCH = 16
KL_WEIGHT = 1e-4


def train_vae(corpus: Corpus, folder: Path, steps: int, device: torch.device) -> AutoencoderKL:
    """The trained VAE with its scaling factor set so that latents have unit variance."""
    torch.manual_seed(0)
    vae = build_vae().to(device, memory_format=torch.channels_last)
    modules = nn.ModuleDict({"vae": vae})
    optimiser = torch.optim.AdamW(vae.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=0.0)
    run = Run(modules=modules, optimiser=optimiser, path=folder / "vae.pt", peak_rate=2e-3, decay=0.995)
    run.go(steps, lambda step: _loss(vae, _crops(corpus, step).to(device)))
    run.use_average()
    return vae.eval()


def _crops(corpus: Corpus, step: int) -> torch.Tensor:
    rng = np.random.default_rng([101, step])
    side = corpus.images.shape[1] - CROP + 1
    crops = [
        corpus.images[i, y : y + CROP, x : x + CROP]
        for i, y, x in zip(
            rng.integers(0, len(corpus.images), BATCH), rng.integers(0, side, BATCH), rng.integers(0, side, BATCH), strict=True
        )
    ]
    return to_tensor(np.stack(crops))


def to_tensor(images_BHW3: NDArray[np.uint8]) -> torch.Tensor:
    """(B, 3, H, W) float32 in [-1, 1], channels last in memory."""
    scaled = torch.from_numpy(images_BHW3).permute(0, 3, 1, 2).float() / 127.5 - 1
    return scaled.contiguous(memory_format=torch.channels_last)


def _loss(vae: AutoencoderKL, crops_B3CC: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    """L1 on pixels and on their gradients (edges), plus a little KL to keep the latents round."""
    posterior = vae.encode(crops_B3CC).latent_dist
    rebuilt = vae.decode(posterior.sample()).sample
    pixels = functional.l1_loss(rebuilt, crops_B3CC)
    edges = sum(functional.l1_loss(rebuilt.diff(dim=d), crops_B3CC.diff(dim=d)) for d in (2, 3))
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    return pixels + edges + KL_WEIGHT * kl, {"l1": pixels.item(), "kl": kl.item()}


@torch.no_grad()
def encode_all(vae: AutoencoderKL, corpus: Corpus, path: Path, device: torch.device) -> NDArray[np.float16]:
    """Posterior means of every scene, (M, 4, h, w) float16, scaled to unit variance; also sets the VAE's scaling factor."""
    if not path.exists():
        count = len(corpus.images)
        means = np.empty((count, 4, LATENT, LATENT), np.float32)
        for start in trange(0, count, 64, desc="latents", mininterval=5):
            batch = to_tensor(np.array(corpus.images[start : start + 64])).to(device)
            means[start : start + 64] = vae.encode(batch).latent_dist.mean.cpu().numpy()
        scale = float(1 / means.std())
        beside = path.with_suffix(".partial")
        with beside.open("wb") as file:
            np.savez(file, latents=(means * scale).astype(np.float16), scale=scale)
        os.replace(beside, path)
    stored = np.load(path)
    vae.register_to_config(scaling_factor=float(stored["scale"]))
    latents: NDArray[np.float16] = stored["latents"]
    return latents
