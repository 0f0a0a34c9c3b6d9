"""The optimisation: text embeddings that make the maps of one backbone light up the painted parts.

All chance is drawn on the CPU from generators of the run's seed, so that the same seed gives the
same embeddings. Images are encoded ahead, in batches: nothing of the VAE is learned.

Shape suffixes: B views of a step, P = K parts, S image side, h, w latent sides, T tokens, D width.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from slime_image import fit, fit_mask
from slime_optimize.attention import was_maps
from slime_optimize.augment import apply_view, draw_view, part_points, recoloured
from slime_optimize.backbone import TOKENS, Backbone
from slime_optimize.data import Example, check_parts
from slime_optimize.errors import InputError, OptimisationError
from slime_optimize.losses import Losses, losses
from slime_optimize.metrics import confusion, report
from slime_optimize.picture import palette
from slime_optimize.predict import Predictor
from slime_optimize.segmenter import Segmenter, library_versions
from slime_optimize.settings import Settings

# Views encoded at once: sixteen of 128 x 128, and one where the images are SD's 512 x 512.
_PIXELS_AT_ONCE = 16 * 128 * 128
# Each use of chance has its own stream, so that a change in one does not move the others.
_STREAMS = {"test noise": 0, "views": 1, "steps": 2}


@dataclass(frozen=True, kw_only=True)
class _Canvas:
    """A training image at the backbone's size: (3,S,S) float32 in [-1,1], (S,S) int64, its painted parts."""

    pixels_3SS: Tensor
    mask_SS: Tensor
    parts: tuple[int, ...]


def optimise(
    backbone: Backbone,
    examples: Sequence[Example],
    parts: Sequence[str],
    settings: Settings,
    *,
    seed: int = 0,
    preset: str = "paper",
    progress: bool = True,
) -> Segmenter:
    """Learns embeddings for parts 1..K-1 from the examples; the background's stays what it is.

    Raises InputError for parts or layers that do not fit, OptimisationError when a loss is not finite.
    """
    names = check_parts(parts)
    if not examples:
        raise InputError("training data: got no image, expected one or more with their masks")
    settings.layers.validate(backbone.unet)
    text_1TD, history = _learn(backbone, examples, len(names), settings, seed, progress)
    segmenter = Segmenter(
        text_embedding=text_1TD.float().cpu(),
        noise=_test_noise(backbone.latent_size, seed),
        parts=names,
        colours=palette(len(names)),
        backbone_id=backbone.id,
        backbone_hash=backbone.hash,
        image_size=backbone.image_size,
        latent_size=backbone.latent_size,
        settings=settings,
        preset=preset,
        seed=seed,
        training_images=tuple(example.digest for example in examples),
        metrics={"losses": history},
        versions=library_versions(),
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )
    return _with_training_iou(segmenter, backbone, examples)


def initial_text(backbone: Backbone, settings: Settings) -> Tensor:
    """The embedding of the prompt word, repeated: (1,T,D), its first row the background's."""
    return backbone.encode_text(" ".join([settings.prompt_word] * TOKENS)).float()


def _learn(
    backbone: Backbone, examples: Sequence[Example], parts: int, settings: Settings, seed: int, progress: bool
) -> tuple[Tensor, dict[str, float]]:
    start_1TD = initial_text(backbone, settings)
    learned_KD = start_1TD[0, 1:parts].clone().requires_grad_(True)
    adam = torch.optim.Adam([learned_KD], lr=settings.learning_rate)
    steps = settings.total_steps(len(examples))
    views = _views(backbone, examples, settings, seed, steps)
    chance = _generator(seed, "steps")
    tail = _Tail(keep=max(1, steps // 10))
    with tqdm(total=steps, desc="optimising", unit="step", disable=not progress) as bar:
        for latents_B4hw, mask_Bhw in views:
            text_1TD = _in_place(start_1TD, learned_KD)
            result = _step(backbone, latents_B4hw, mask_Bhw, text_1TD, parts, settings, chance)
            _check_finite(result, bar.n, settings)
            adam.zero_grad(set_to_none=True)
            torch.autograd.backward(result.total)
            adam.step()
            bar.set_postfix(tail.add(result), refresh=False)
            bar.update()
    return _in_place(start_1TD, learned_KD).detach(), tail.means()


def _step(
    backbone: Backbone,
    latents_B4hw: Tensor,
    mask_Bhw: Tensor,
    text_1TD: Tensor,
    parts: int,
    settings: Settings,
    chance: torch.Generator,
) -> Losses:
    """One forward pass at drawn timesteps and noise, one for each view."""
    low, high = settings.t_opt
    timesteps_B = torch.randint(low, high + 1, (len(latents_B4hw),), generator=chance).to(backbone.device)
    noise = torch.randn(latents_B4hw.shape, generator=chance).to(backbone.device, backbone.dtype)
    noised = backbone.add_noise(latents_B4hw, noise, timesteps_B)
    text = text_1TD.to(backbone.dtype)
    over_parts = settings.cross_entropy == "logits"
    maps = was_maps(backbone.unet, noised, timesteps_B, text, parts, settings.layers, over_parts=over_parts)
    return losses(maps, mask_Bhw, backbone.target(latents_B4hw, noise, timesteps_B), settings)


def _views(
    backbone: Backbone, examples: Sequence[Example], settings: Settings, seed: int, steps: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Latents (B,4,h,w) and masks (B,h,w) of each step's augmented views, encoded several steps ahead."""
    canvases = [_canvas(example, backbone.image_size) for example in examples]
    chance = _generator(seed, "views")
    order = _endless_order(len(canvases), chance)
    ahead = max(1, _PIXELS_AT_ONCE // (backbone.image_size**2 * settings.batch_size))
    turn = 0
    for done in range(0, steps, ahead):
        count = min(ahead, steps - done) * settings.batch_size
        pairs = []
        for index in (next(order) for _ in range(count)):
            pairs.append(_view(canvases[index], settings, chance, turn))
            turn += 1
        latents = backbone.encode(torch.stack([pixels for pixels, _ in pairs]))
        masks = _shrunk(torch.stack([mask for _, mask in pairs]), backbone.latent_size).to(backbone.device)
        size = settings.batch_size
        yield from zip(torch.split(latents, size), torch.split(masks, size), strict=True)


def _view(canvas: _Canvas, settings: Settings, chance: torch.Generator, turn: int) -> tuple[Tensor, Tensor]:
    """A random view that shows enough of one part, each part in its turn."""
    points = part_points(canvas.mask_SS, canvas.parts[turn % len(canvas.parts)])
    pixels_3SS = recoloured(canvas.pixels_3SS, canvas.mask_SS, settings.recolour, chance)
    return apply_view(draw_view(settings, chance, points), pixels_3SS, canvas.mask_SS)


def _canvas(example: Example, size: int) -> _Canvas:
    mask_SS = torch.from_numpy(fit_mask(example.mask_HW, size)).long()
    parts = tuple(sorted(set(mask_SS.flatten().tolist())))
    return _Canvas(pixels_3SS=torch.from_numpy(fit(example.image_HW3, size)), mask_SS=mask_SS, parts=parts)


def _shrunk(mask_BSS: Tensor, size: int) -> Tensor:
    """Nearest pixel: (B,size,size) int64."""
    return F.interpolate(mask_BSS[:, None].float(), (size, size), mode="nearest-exact")[:, 0].long()


def _endless_order(count: int, chance: torch.Generator) -> Iterator[int]:
    """Every index once, in random order, then again."""
    while True:
        yield from torch.randperm(count, generator=chance).tolist()


def _in_place(start_1TD: Tensor, learned_KD: Tensor) -> Tensor:
    after = 1 + learned_KD.shape[0]
    return torch.cat([start_1TD[:, :1], learned_KD[None], start_1TD[:, after:]], dim=1)


def _generator(seed: int, stream: str) -> torch.Generator:
    return torch.Generator().manual_seed(seed * len(_STREAMS) + _STREAMS[stream])


def _test_noise(latent_size: int, seed: int) -> Tensor:
    return torch.randn(1, 4, latent_size, latent_size, generator=_generator(seed, "test noise"))


def _check_finite(result: Losses, step: int, settings: Settings) -> None:
    if not bool(torch.isfinite(result.total)):
        raise OptimisationError(
            f"loss: is {float(result.total.detach())} at step {step + 1}, expected a number; "
            f"try a learning rate under {settings.learning_rate}"
        )


def _with_training_iou(segmenter: Segmenter, backbone: Backbone, examples: Sequence[Example]) -> Segmenter:
    masks = Predictor(segmenter, backbone).masks([example.image_HW3 for example in examples])
    pairs = zip(examples, masks, strict=True)
    counts = [confusion(example.mask_HW, mask, len(segmenter.parts)) for example, mask in pairs]
    training: dict[str, Any] = report(counts, segmenter.parts).as_json()
    return replace(segmenter, metrics={**segmenter.metrics, "training": training})


class _Tail:
    """The last steps' losses: one step alone is too noisy to show, or to keep."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._rows: list[tuple[float, float, float]] = []

    def add(self, result: Losses) -> dict[str, str]:
        """What the progress bar shows after this step."""
        row = torch.stack([result.cross_entropy, result.was, result.diffusion]).detach()
        self._rows.append((float(row[0]), float(row[1]), float(row[2])))
        del self._rows[: -self._keep]
        return {name: f"{value:.3f}" for name, value in self.means().items()}

    def means(self) -> dict[str, float]:
        columns = zip(*self._rows, strict=True)
        values = (sum(column) / len(self._rows) for column in columns)
        return dict(zip(("ce", "was", "diffusion"), values, strict=True))
