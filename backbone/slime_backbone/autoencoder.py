"""Train the VAE on crops, then turn the whole corpus into latents once.

Legend: B batch, C crop side, M scenes.
"""

from __future__ import annotations

import json
import math
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
from slime_backbone.training import Figures, Run
from slime_optimize.files import whole

CROP = 64  # the VAE is convolutional, and a crop costs a quarter of a scene
BATCH = {"cpu": 16, "cuda": 64}
ENCODED = {"cpu": 64, "cuda": 512}  # scenes encoded at a time
SCALE_FILE = "scale.json"  # the scaling factor of a state whose latents are not there
KL_WEIGHT = 1e-4


def train_vae(
    corpus: Corpus, folder: Path, steps: int, device: torch.device, seconds: float = math.inf
) -> AutoencoderKL:
    """Return the VAE after `steps` steps or `seconds`. One that made latents is final: what learned them needs it."""
    torch.manual_seed(0)
    vae = build_vae().to(device, memory_format=torch.channels_last)
    modules = nn.ModuleDict({"vae": vae})
    optimiser = torch.optim.AdamW(vae.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=0.0)
    batch = BATCH[device.type]
    facts: dict[str, str | int | float] = {"batch": batch, "rate": 2e-3, "scenes": len(corpus.images)}
    path = folder / "vae.pt"
    run = Run(modules=modules, optimiser=optimiser, path=path, peak_rate=2e-3, decay=0.995, facts=facts)
    if known_scale(folder) is None:
        run.go(steps, lambda step: _loss(vae, _crops(corpus, step, batch).to(device), step), seconds)
    run.use_average()
    return vae.eval()


def _crops(corpus: Corpus, step: int, batch: int) -> torch.Tensor:
    rng = np.random.default_rng([101, step])
    side = corpus.images.shape[1] - CROP + 1
    which, top, left = (rng.integers(0, n, batch) for n in (len(corpus.images), side, side))
    crops = [corpus.images[i, y : y + CROP, x : x + CROP] for i, y, x in zip(which, top, left, strict=True)]
    return to_tensor(np.stack(crops))


def to_tensor(images_BHW3: NDArray[np.uint8]) -> torch.Tensor:
    """Return images as (B, 3, H, W) float32 in [-1, 1], channels last in memory."""
    scaled = torch.from_numpy(images_BHW3).permute(0, 3, 1, 2).float() / 127.5 - 1
    return scaled.contiguous(memory_format=torch.channels_last)


def _loss(vae: AutoencoderKL, crops_B3CC: torch.Tensor, step: int) -> tuple[torch.Tensor, Figures]:
    """Return L1 on pixels and on their gradients (edges), plus a little KL divergence to keep latents near normal."""
    posterior = vae.encode(crops_B3CC).latent_dist
    rebuilt = vae.decode(posterior.sample(torch.Generator(crops_B3CC.device).manual_seed(step))).sample
    pixels = functional.l1_loss(rebuilt, crops_B3CC)
    edges = sum(functional.l1_loss(rebuilt.diff(dim=d), crops_B3CC.diff(dim=d)) for d in (2, 3))
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    return pixels + edges + KL_WEIGHT * kl, {"l1": pixels.detach(), "kl": kl.detach()}


def known_scale(folder: Path) -> float | None:
    """Return the scaling factor of a state's latents, whichever corpus they are of; None before there are any."""
    if (folder / SCALE_FILE).exists():
        return float(json.loads((folder / SCALE_FILE).read_text()))
    stored = next(iter(sorted(folder.glob("latents-*.npz"))), None)
    return None if stored is None else float(np.load(stored)["scale"])


@torch.no_grad()
def encode_all(vae: AutoencoderKL, corpus: Corpus, folder: Path, device: torch.device) -> NDArray[np.float16]:
    """Return every scene's posterior mean, (M, 4, h, w) float16, scaled to unit variance; kept in `folder`."""
    path = folder / f"latents-{len(corpus.images)}.npz"
    if not path.exists():
        count, batch = len(corpus.images), ENCODED[device.type]
        means = np.empty((count, 4, LATENT, LATENT), np.float32)
        for start in trange(0, count, batch, desc="latents", mininterval=5):
            pixels = to_tensor(np.array(corpus.images[start : start + batch])).to(device)
            means[start : start + batch] = vae.encode(pixels).latent_dist.mean.cpu().numpy()
        scale = known_scale(folder) or float(1 / means.std())
        with whole(path) as waiting, waiting.open("wb") as file:
            np.savez(file, latents=(means * scale).astype(np.float16), scale=scale)
    latents: NDArray[np.float16] = np.load(path)["latents"]
    return latents
