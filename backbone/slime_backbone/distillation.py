"""Teach a tiny encoder the trained VAE's latents: posterior means x scaling factor, of scenes and of changed views.

Segmenters are learned on changed views (turned, cropped, recoloured), so that what encodes them must know such, too.

Legend: B batch, S picture side, M pictures, h latent side.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from numpy.typing import NDArray
from torch import nn
from tqdm import trange

from slime_backbone.autoencoder import SCALE_FILE, encode_all, to_tensor
from slime_backbone.corpus import Corpus, corpus
from slime_backbone.models import build_tiny_vae
from slime_backbone.training import Figures, Run, TrainingError
from slime_optimize.files import whole
from slime_optimize.method.augmentation import apply_view, draw_view, recoloured
from slime_optimize.settings import Settings

IDENTITY_FILE = "distillation.json"
_BANDS = 8  # of brightness: they stand in for parts, which no training sees, where a view is recoloured
_VIEWS = Settings(recolour_probability=0.5)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How much, and how."""

    scenes: int = 12_000
    views: int = 6_000
    steps: int = 12_000
    batch: int = 16
    rate: float = 3e-3
    seed: int = 0
    seconds: float = math.inf


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """Pictures (M,S,S,3) uint8 and the latents (M,4,h,h) float16 that the VAE makes of them."""

    images: NDArray[np.uint8]
    latents: NDArray[np.float16]

    def batch(self, which: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return pixels (B,3,S,S) in [-1, 1] and latents (B,4,h,h), float32."""
        return to_tensor(self.images[which]), torch.from_numpy(self.latents[which]).float()


def distil(weights: Path, state: Path, recipe: Recipe, device: torch.device, workers: int = 0) -> Run:
    """Train, or go on from `state`; the run's averaged weights are in its modules. Raises TrainingError."""
    _claim(state, {"vae": vae_digest(weights), "seed": recipe.seed, "views": recipe.views, "scenes": recipe.scenes})
    vae = teacher(weights).to(device, memory_format=torch.channels_last)
    lessons = _lessons(vae, state, recipe, device, workers)
    torch.manual_seed(recipe.seed)
    tiny = build_tiny_vae().to(device, memory_format=torch.channels_last)
    encoder = nn.ModuleDict({"encoder": tiny.encoder})
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=recipe.rate, betas=(0.9, 0.99), weight_decay=0.0)
    facts: dict[str, str | int | float] = {"batch": recipe.batch, "rate": recipe.rate, "scenes": recipe.scenes}
    run = Run(modules=encoder, optimiser=optimiser, path=state / "tiny_vae.pt", peak_rate=recipe.rate, facts=facts)
    run.go(recipe.steps, lambda step: _loss(tiny, lessons, step, recipe, device), recipe.seconds)
    run.use_average()
    return run


def vae_digest(weights: Path) -> str:
    """Return the SHA-256 of the VAE's weights, which a tiny encoder was taught by."""
    path = weights / "vae" / "diffusion_pytorch_model.safetensors"
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise TrainingError(f"weights {weights}: has no vae/{path.name}, expected what train.py wrote") from error


@torch.no_grad()
def relative_error(tiny: AutoencoderTiny, lesson: Lesson, batch: int = 16) -> float:
    """Return the root of the mean squared difference over that of the mean square, on all of `lesson`."""
    wrong = whole = 0.0
    for start in range(0, len(lesson.images), batch):
        pixels, latents = lesson.batch(np.arange(start, min(start + batch, len(lesson.images))))
        wrong += float((tiny.encode(pixels).latents - latents).square().sum())
        whole += float(latents.square().sum())
    return math.sqrt(wrong / whole)


@torch.no_grad()
def lesson_of(weights: Path, images: NDArray[np.uint8], batch: int = 16) -> Lesson:
    """Return pictures and what the VAE in `weights` makes of them, to measure by."""
    vae = teacher(weights)
    parts = [vae.encode(to_tensor(images[i : i + batch])).latent_dist.mean for i in range(0, len(images), batch)]
    return Lesson(images=images, latents=(torch.cat(parts) * vae.config.scaling_factor).numpy().astype(np.float16))


def changed_views(images: NDArray[np.uint8], count: int, seed: int) -> NDArray[np.uint8]:
    """Return pictures mirrored, turned, cropped, blurred, recoloured, as segmenters see them: (count,S,S,3) uint8."""
    rng, chance = np.random.default_rng([seed, 103]), torch.Generator().manual_seed(seed)
    views = np.empty((count, *images.shape[1:]), np.uint8)
    for i in trange(count, desc="views", mininterval=5):
        pixels_3SS = to_tensor(np.array(images[rng.integers(len(images))])[None])[0]
        bands_SS = ((pixels_3SS.mean(0) + 1) * (_BANDS / 2)).long()
        coloured_3SS = recoloured(pixels_3SS, bands_SS, _VIEWS.recolour_probability, chance)
        view_3SS, _ = apply_view(draw_view(_VIEWS, chance), coloured_3SS, bands_SS)
        views[i] = ((view_3SS + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 0).numpy()
    return views


def teacher(weights: Path) -> AutoencoderKL:
    """Return the VAE in `weights`, frozen."""
    vae: AutoencoderKL = AutoencoderKL.from_pretrained(weights / "vae", torch_dtype=torch.float32)
    return vae.eval().requires_grad_(False)


def _claim(state: Path, identity: dict[str, Any]) -> None:
    """Raise TrainingError unless what is in `state` is of this identity, or nothing is there yet."""
    path = state / IDENTITY_FILE
    state.mkdir(parents=True, exist_ok=True)
    if path.exists() and (got := json.loads(path.read_text())) != identity:
        names = ", ".join(name for name in identity if got.get(name) != identity[name])
        raise TrainingError(f"state {state}: was begun with another {names}; give the same, or another --state")
    path.write_text(json.dumps(identity) + "\n")


def _lessons(
    vae: AutoencoderKL, state: Path, recipe: Recipe, device: torch.device, workers: int
) -> tuple[Lesson, Lesson]:
    """Return scenes and views, drawn and encoded once, kept in `state`."""
    scenes = corpus(state, recipe.scenes, workers)
    folder = state / "views"
    path = folder / f"views-{recipe.views}.npy"
    if not path.exists():
        with whole(path) as waiting, waiting.open("wb") as file:
            np.save(file, changed_views(scenes.images, recipe.views, recipe.seed))
    views = Corpus(images=np.load(path, mmap_mode="r"), captions=[])
    for each in (state, folder):
        (each / SCALE_FILE).write_text(json.dumps(vae.config.scaling_factor) + "\n")
    return (
        Lesson(images=scenes.images, latents=encode_all(vae, scenes, state, device)),
        Lesson(images=views.images, latents=encode_all(vae, views, folder, device)),
    )


def _loss(
    tiny: AutoencoderTiny, lessons: tuple[Lesson, Lesson], step: int, recipe: Recipe, device: torch.device
) -> tuple[torch.Tensor, Figures]:
    """Return squared plus absolute difference, half of the batch scenes and half changed views."""
    rng = np.random.default_rng([recipe.seed, step])
    halves = [each.batch(rng.integers(0, len(each.images), max(1, recipe.batch // 2))) for each in lessons]
    pixels, latents = (torch.cat(each).to(device) for each in zip(*halves, strict=True))
    wrong = tiny.encode(pixels).latents - latents
    squared = wrong.square().mean()
    return squared + wrong.abs().mean(), {"l2": squared.detach()}
