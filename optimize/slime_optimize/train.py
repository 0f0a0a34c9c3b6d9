"""The optimisation: text embeddings that make the maps of one backbone light up the painted parts.

All chance is drawn on the CPU from generators of the run's seed, so that the same seed gives the
same embeddings. Images are encoded ahead, in batches: nothing of the VAE is learned.

Shape suffixes: B views of a step, P = K parts, S image side, h, w latent sides, T tokens, D width.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from slime_optimize.backbone import TOKENS, Backbone
from slime_optimize.chance import generator
from slime_optimize.data import Example, check_parts
from slime_optimize.errors import InputError, OptimisationError
from slime_optimize.losses import Losses
from slime_optimize.metrics import confusion, report
from slime_optimize.picture import palette
from slime_optimize.predict import Predictor
from slime_optimize.segmenter import Segmenter, library_versions
from slime_optimize.settings import Settings
from slime_optimize.step import Stepper
from slime_optimize.views import views


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
    stepper = Stepper(backbone=backbone, settings=settings, parts=parts, seed=seed)
    tail = _Tail(keep=max(1, steps // 10))
    with tqdm(total=steps, desc="optimising", unit="step", disable=not progress) as bar:
        for latents_B4hw, mask_Bhw in views(backbone, examples, settings, seed, steps):
            text_1TD = _in_place(start_1TD, learned_KD)
            result = stepper.losses(latents_B4hw, mask_Bhw, text_1TD, bar.n)
            _check_finite(result, bar.n, settings)
            adam.zero_grad(set_to_none=True)
            torch.autograd.backward(result.total)
            adam.step()
            bar.set_postfix(tail.add(result), refresh=False)
            bar.update()
    return _in_place(start_1TD, learned_KD).detach(), tail.means()


def _in_place(start_1TD: Tensor, learned_KD: Tensor) -> Tensor:
    after = 1 + learned_KD.shape[0]
    return torch.cat([start_1TD[:, :1], learned_KD[None], start_1TD[:, after:]], dim=1)


def _test_noise(latent_size: int, seed: int) -> Tensor:
    return torch.randn(1, 4, latent_size, latent_size, generator=generator(seed, "test noise"))


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
