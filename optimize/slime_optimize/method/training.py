"""The optimisation: text embeddings that make the maps of one backbone light up the painted parts.

All random numbers come from generators of the run's seed, on the CPU, so that the same seed gives the same embeddings,
and a run that continues from a checkpoint those of one that was never stopped.

Shape suffixes: B views of a step, K parts, h, w latent sides, T tokens, D width, S steps, L losses.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from slime_optimize.backbone import Backbone
from slime_optimize.data.annotations import Example, check_parts
from slime_optimize.data.validation import Measured, Validation, compared, measure
from slime_optimize.errors import OptimisationError
from slime_optimize.method.augmentation import views
from slime_optimize.method.checkpoint import Checkpoint, State, adam_state, restore_adam
from slime_optimize.method.losses import Losses
from slime_optimize.method.prediction import Predictor
from slime_optimize.method.run import Run, initial_text
from slime_optimize.method.seeds import sampled_noise
from slime_optimize.picture import palette
from slime_optimize.segmenter import Segmenter, in_place, library_versions, now_in_utc
from slime_optimize.settings import Settings

LOSSES = ("ce", "was", "diffusion")
# Shares of a run after which the embeddings are kept for the report: most happens early.
_SNAPSHOTS = (0, 0.05, 0.1, 0.25, 0.5, 1)


@dataclass(frozen=True, kw_only=True)
class Learned:
    """A segmenter and how it was learned.

    losses_SL: float64 (ce, was, diffusion); snapshots: embeddings (K-1,D) by the step they were kept at; masks_HW: the
    predicted masks of the training images; seconds: the time that learning took.
    """

    segmenter: Segmenter
    losses_SL: Tensor
    snapshots: Mapping[int, Tensor]
    measured: Measured
    masks_HW: tuple[npt.NDArray[np.uint8], ...]
    seconds: float


def optimise(
    backbone: Backbone,
    examples: Sequence[Example],
    parts: Sequence[str],
    settings: Settings,
    *,
    seed: int = 0,
    preset: str = "paper",
    validation: Validation | None = None,
    progress: bool = True,
) -> Segmenter:
    """Learn embeddings for parts 1..K-1 from the examples; the background's stays what it is.

    Returns the embeddings that are best on `validation`, else the last. Raises InputError for parts or layers that do
    not fit, OptimisationError when a loss is not finite.
    """
    run = Run(
        backbone=backbone,
        examples=tuple(examples),
        parts=check_parts(parts),
        settings=settings,
        seed=seed,
        preset=preset,
        validation=validation,
    )
    return learn(run, progress=progress).segmenter


def learn(
    run: Run,
    *,
    checkpoint: Checkpoint | None = None,
    state: State | None = None,
    progress: bool = True,
    stepped: Callable[[Trainer], object] = lambda trainer: None,
) -> Learned:
    """Carry out the run, from `state` on where there is one, saving to `checkpoint` on the way and at the end.

    `stepped` is called after each step.
    """
    run.settings.layers.validate(run.backbone.unet)
    trainer = Trainer(run, state)
    try:
        trainer.train(checkpoint, progress, stepped)
    except OptimisationError:
        if checkpoint:
            checkpoint.remove()  # a run that continued from it would only fail at the same step again
        raise
    return trainer.learned()


def rate(settings: Settings, step: int, steps: int) -> float:
    """Return the learning rate of a step: constant, or falling along half a cosine to almost 0 in the last."""
    factor = 0.5 + 0.5 * math.cos(math.pi * step / steps) if settings.schedule == "cosine" else 1.0
    return settings.learning_rate * factor


class Trainer:
    """The embeddings while they are learned, and what is recorded on the way; `state` is where to continue."""

    def __init__(self, run: Run, state: State | None = None) -> None:
        self.run = run
        self.finished = state.step if state else 0
        self._start_1TD = initial_text(run.backbone, run.settings, len(run.parts))
        start_KD = self._start_1TD[0, 1 : len(run.parts)]
        if state:
            start_KD = state.learned_KD.to(start_KD)
        elif run.begin:
            start_KD = run.begin.segmenter.embeddings.to(start_KD)
        self._learned_KD = start_KD.clone().requires_grad_(True)
        self._adam = torch.optim.Adam([self._learned_KD], lr=run.settings.learning_rate)
        restore_adam(self._adam, state.adam if state else {})
        self._losses: list[list[float]] = state.losses_SL.tolist() if state else []
        self._snapshots = dict(state.snapshots) if state else {0: self._embeddings()}
        self._measured = state.measured if state else Measured()
        self._began = time.monotonic() - (state.seconds if state else 0)
        self._snapshot_steps = {max(1, round(share * run.steps)) for share in _SNAPSHOTS if share}
        self._untrained = Segmenter(
            text_embedding=self._start_1TD.float().cpu(),
            noise=sampled_noise(run.backbone.latent_size, run.seed, run.settings.noise_samples),
            parts=run.parts,
            colours=palette(len(run.parts)),
            backbone_id=run.backbone.id,
            backbone_hash=run.backbone.hash,
            tiny=run.backbone.tiny_name(run.settings.encoder),
            image_size=run.backbone.image_size,
            latent_size=run.backbone.latent_size,
            settings=run.settings,
            preset=run.preset,
            preset_from=run.preset_from,
            seed=run.seed,
            training_images=tuple(example.digest for example in run.examples),
            begun_from=run.begin.record if run.begin else None,
            versions=library_versions(),
        )

    def train(self, checkpoint: Checkpoint | None, progress: bool, stepped: Callable[[Trainer], object]) -> None:
        """Take the steps that are left. Raises OptimisationError when a loss is not finite."""
        run = self.run
        stepper = run.stepper
        pairs = views(run.backbone, run.examples, run.settings, run.seed, run.steps, first=self.finished)
        with tqdm(total=run.steps, initial=self.finished, desc="optimising", unit="step", disable=not progress) as bar:
            for latents_B4hw, mask_Bhw in pairs:
                text_1TD = in_place(self._start_1TD, self._learned_KD)
                self.step(stepper.losses(latents_B4hw, mask_Bhw, text_1TD, self.finished))
                validated = self._record()
                if checkpoint and (checkpoint.is_due or validated or self.finished == run.steps):
                    checkpoint.save(self._state(), run.identity)
                shown = {name: f"{value:.3f}" for name, value in self.mean_losses().items()}
                if self._measured.learned_KD is not None:
                    shown["best"] = f"{self._measured.iou_by_step[self._measured.step]:.1f}%"
                bar.set_postfix(shown, refresh=False)
                bar.update()
                stepped(self)

    def step(self, losses: Losses) -> None:
        """Take one step of Adam. Raises OptimisationError when the loss is not finite."""
        if not bool(torch.isfinite(losses.total)):
            raise OptimisationError(
                f"loss: is {float(losses.total.detach())} at step {self.finished + 1}, expected a number; "
                f"try a learning rate under {self.run.settings.learning_rate}"
            )
        self._adam.zero_grad(set_to_none=True)
        torch.autograd.backward(losses.total)
        self._adam.param_groups[0]["lr"] = rate(self.run.settings, self.finished, self.run.steps)
        self._adam.step()
        self._losses.append(torch.stack([losses.cross_entropy, losses.was, losses.diffusion]).detach().tolist())
        self.finished += 1

    @property
    def left(self) -> int:
        """Number of steps that are still to come."""
        return self.run.steps - self.finished

    def segmenter(self) -> Segmenter:
        """Return a segmenter with the embeddings as they are now, without metrics."""
        return self._untrained.with_embeddings(self._embeddings())

    def learned(self) -> Learned:
        """Return the segmenter with the best embeddings, or the last ones without validation, and its metrics."""
        seconds, run, measured = time.monotonic() - self._began, self.run, self._measured
        segmenter = self._untrained.with_embeddings(
            self._embeddings() if measured.learned_KD is None else measured.learned_KD
        )
        masks = Predictor(segmenter, run.backbone).masks([example.image_HW3 for example in run.examples])
        metrics: dict[str, Any] = {
            "losses": self.mean_losses(),
            "losses_at_first": self.mean_losses(first=True),
            "step": measured.step or self.finished,
            "precision": run.precision,
            "training": compared(run.examples, masks, run.parts).as_json(),
        }
        if run.validation:
            metrics["validation"] = {
                **measured.report,
                "held_back": run.validation.examples[0].name if run.validation.held_back else None,
                "step": measured.step,
                "mean_iou_by_step": {str(step): round(iou, 3) for step, iou in measured.iou_by_step.items()},
            }
        metrics["seconds"] = round(seconds, 1)
        return Learned(
            segmenter=replace(segmenter, metrics=metrics, created=now_in_utc()),
            losses_SL=self.losses_SL,
            snapshots=self._snapshots,
            measured=measured,
            masks_HW=tuple(masks),
            seconds=seconds,
        )

    def _record(self) -> bool:
        """Keep the embeddings and measure them, each where it is due; return whether they were measured."""
        if self.finished in self._snapshot_steps:
            self._snapshots[self.finished] = self._embeddings()
        validation = self.run.validation
        if not (validation and validation.is_due(self.finished, self.run.steps)):
            return False
        now_KD = self._embeddings()
        predictor = Predictor(self._untrained.with_embeddings(now_KD), self.run.backbone)
        self._measured = self._measured.and_then(self.finished, now_KD, measure(predictor, validation.examples))
        return True

    def _state(self) -> State:
        return State(
            step=self.finished,
            learned_KD=self._embeddings(),
            adam=adam_state(self._adam),
            losses_SL=self.losses_SL,
            snapshots=self._snapshots,
            measured=self._measured,
            seconds=time.monotonic() - self._began,
        )

    def mean_losses(self, *, first: bool = False) -> dict[str, float]:
        """Return the mean of each loss over the last tenth of the run, or the first: a single step is too noisy."""
        tenth = max(1, self.run.steps // 10)
        rows = self._losses[:tenth] if first else self._losses[-tenth:]
        return dict(zip(LOSSES, (sum(column) / len(rows) for column in zip(*rows, strict=True)), strict=True))

    @property
    def losses_SL(self) -> Tensor:  # noqa: N802 (a shape suffix)
        """The losses of the steps so far, float64 (S,L) in the order of LOSSES."""
        return torch.tensor(self._losses, dtype=torch.float64).reshape(-1, len(LOSSES))

    def _embeddings(self) -> Tensor:
        """Return a copy of the learned rows, (K-1,D) float32, on the CPU."""
        return self._learned_KD.detach().float().cpu().clone()
