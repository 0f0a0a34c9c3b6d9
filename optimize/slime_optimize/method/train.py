"""The optimisation: text embeddings that make the maps of one backbone light up the painted parts.

All chance is drawn on the CPU from generators of the run's seed, so that the same seed gives the
same embeddings, and a run that goes on from a checkpoint those of one that was never stopped.

Shape suffixes: B views of a step, K parts, h, w latent sides, T tokens, D width, S steps, L losses.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from slime_optimize.backbone import TOKENS, Backbone
from slime_optimize.data.annotations import Example, check_parts
from slime_optimize.data.validation import Found, Validation, compared, measure
from slime_optimize.errors import InputError, OptimisationError
from slime_optimize.method.checkpoint import Checkpoint, State, adam_state, digest, restore_adam
from slime_optimize.method.losses import Losses
from slime_optimize.method.predict import Predictor
from slime_optimize.method.seeds import sampled_noise
from slime_optimize.method.step import Stepper
from slime_optimize.method.views import views
from slime_optimize.picture import palette
from slime_optimize.segmenter import Segmenter, in_place, library_versions, now_in_utc
from slime_optimize.settings import Settings

LOSSES = ("ce", "was", "diffusion")
# Shares of a run after which the embeddings are kept for the report: most happens early.
_SNAPSHOTS = (0, 0.05, 0.1, 0.25, 0.5, 1)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run is of. Raises InputError for parts that cannot be, or nothing to learn from, BackboneError for a tiny
    encoder that is not there."""

    backbone: Backbone
    examples: tuple[Example, ...]
    parts: tuple[str, ...]
    settings: Settings
    seed: int = 0
    preset: str = "paper"
    validation: Validation | None = None

    def __post_init__(self) -> None:
        check_parts(self.parts)
        self.backbone.tiny_name(self.settings.encoder)
        if not self.examples:
            raise InputError("training data: got no image, expected one or more with their masks")

    @property
    def steps(self) -> int:
        return self.settings.total_steps(len(self.examples))

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the embeddings, as plain JSON values: a checkpoint of another run is no use."""
        validation = self.validation
        return {
            "seed": self.seed,
            "steps": self.steps,
            "parts": list(self.parts),
            "backbone": self.backbone.hash,
            "tiny encoder": tiny.hash if (tiny := self.backbone.tiny_name(self.settings.encoder)) else None,
            "training images": [digest(example) for example in self.examples],
            "validation images": [digest(example) for example in validation.examples] if validation else [],
            "validated every": validation.every if validation else None,
            **self.settings.as_json(),
            "torch": torch.__version__,
            "device": self.backbone.device.type,
        }


@dataclass(frozen=True, kw_only=True)
class Learned:
    """A segmenter and how it came to be: losses_SL float64 (ce, was, diffusion), embeddings (K-1,D) by the step they
    were kept at, the masks of the training images, and the seconds that learning took."""

    segmenter: Segmenter
    losses_SL: Tensor
    snapshots: Mapping[int, Tensor]
    found: Found
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
    """Learns embeddings for parts 1..K-1 from the examples; the background's stays what it is.

    With `validation` the best of the embeddings that it measured, else the last. Raises InputError for
    parts or layers that do not fit, OptimisationError when a loss is not finite.
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
    run: Run, *, checkpoint: Checkpoint | None = None, state: State | None = None, progress: bool = True
) -> Learned:
    """The run, from `state` on where there is one, saved to `checkpoint` on the way and when it is through."""
    run.settings.layers.validate(run.backbone.unet)
    pupil = _Pupil(run, state)
    try:
        _practise(pupil, checkpoint, progress)
    except OptimisationError:
        if checkpoint:
            checkpoint.remove()  # to go on from it would only fail at the same step again
        raise
    return pupil.learned()


def _practise(pupil: _Pupil, checkpoint: Checkpoint | None, progress: bool) -> None:
    run = pupil.run
    stepper = Stepper(backbone=run.backbone, settings=run.settings, parts=len(run.parts), seed=run.seed)
    with tqdm(total=run.steps, initial=pupil.step, desc="optimising", unit="step", disable=not progress) as bar:
        for latents_B4hw, mask_Bhw in views(
            run.backbone, run.examples, run.settings, run.seed, run.steps, first=pupil.step
        ):
            pupil.take(stepper.losses(latents_B4hw, mask_Bhw, pupil.text(), pupil.step))
            measured = pupil.look_back()
            if checkpoint and (checkpoint.is_due or measured or pupil.step == run.steps):
                checkpoint.save(pupil.state(), run.identity)
            bar.set_postfix(pupil.shown(), refresh=False)
            bar.update()


def initial_text(backbone: Backbone, settings: Settings, parts: int) -> Tensor:
    """The embedding of the prompt word, repeated: (1,T,D), its first row the background's."""
    times = TOKENS if settings.prompt_times == "tokens" else parts
    return backbone.encode_text(" ".join([settings.prompt_word] * times)).float()


def rate(settings: Settings, step: int, steps: int) -> float:
    """The learning rate of a step: the same in all, or falling along half a cosine to almost 0 in the last."""
    fall = 0.5 + 0.5 * math.cos(math.pi * step / steps) if settings.schedule == "cosine" else 1.0
    return settings.learning_rate * fall


class _Pupil:
    """The embeddings while they are learned, and what is remembered on the way."""

    def __init__(self, run: Run, state: State | None) -> None:
        self.run = run
        self.step = state.step if state else 0
        self._start_1TD = initial_text(run.backbone, run.settings, len(run.parts))
        begin_KD = state.learned_KD.to(run.backbone.device) if state else self._start_1TD[0, 1 : len(run.parts)]
        self._learned_KD = begin_KD.clone().requires_grad_(True)
        self._adam = torch.optim.Adam([self._learned_KD], lr=run.settings.learning_rate)
        restore_adam(self._adam, state.adam if state else {})
        self._losses: list[list[float]] = state.losses_SL.tolist() if state else []
        self._snapshots = dict(state.snapshots) if state else {0: self._now()}
        self._found = state.found if state else Found()
        self._began = time.monotonic() - (state.seconds if state else 0)
        self._wanted = {max(1, round(share * run.steps)) for share in _SNAPSHOTS if share}
        self._base = _segmenter(run, self._start_1TD)

    def text(self) -> Tensor:
        """The whole text embedding (1,T,D), differentiable in the learned rows."""
        return in_place(self._start_1TD, self._learned_KD)

    def take(self, result: Losses) -> None:
        """One step of Adam."""
        self._check_finite(result)
        self._adam.zero_grad(set_to_none=True)
        torch.autograd.backward(result.total)
        self._adam.param_groups[0]["lr"] = rate(self.run.settings, self.step, self.run.steps)
        self._adam.step()
        row = torch.stack([result.cross_entropy, result.was, result.diffusion]).detach()
        self._losses.append(row.tolist())
        self.step += 1

    def look_back(self) -> bool:
        """Keeps the embeddings, and measures them, where it is time; whether it has measured."""
        if self.step in self._wanted:
            self._snapshots[self.step] = self._now()
        validation = self.run.validation
        if not (validation and validation.is_due(self.step, self.run.steps)):
            return False
        now = self._now()
        measured = measure(Predictor(self._base.with_embeddings(now), self.run.backbone), validation.examples)
        self._found = self._found.and_then(self.step, now, measured)
        return True

    def shown(self) -> dict[str, str]:
        """What the progress bar tells."""
        told = {name: f"{value:.3f}" for name, value in self._means().items()}
        if self._found.learned_KD is not None:
            told["best"] = f"{self._found.iou_by_step[self._found.step]:.1f}%"
        return told

    def state(self) -> State:
        return State(
            step=self.step,
            learned_KD=self._now(),
            adam=adam_state(self._adam),
            losses_SL=self._rows(),
            snapshots=self._snapshots,
            found=self._found,
            seconds=self._seconds(),
        )

    def learned(self) -> Learned:
        seconds, run = self._seconds(), self.run
        chosen = self._now() if self._found.learned_KD is None else self._found.learned_KD
        segmenter = self._base.with_embeddings(chosen)
        masks = Predictor(segmenter, run.backbone).masks([example.image_HW3 for example in run.examples])
        metrics = {
            "losses": self._means(),
            "step": self._found.step or self.step,
            "training": compared(run.examples, masks, run.parts).as_json(),
            **_chosen_by(run.validation, self._found),
            "seconds": round(seconds, 1),
        }
        return Learned(
            segmenter=replace(segmenter, metrics=metrics, created=now_in_utc()),
            losses_SL=self._rows(),
            snapshots=self._snapshots,
            found=self._found,
            masks_HW=tuple(masks),
            seconds=seconds,
        )

    def _check_finite(self, result: Losses) -> None:
        if not bool(torch.isfinite(result.total)):
            raise OptimisationError(
                f"loss: is {float(result.total.detach())} at step {self.step + 1}, expected a number; "
                f"try a learning rate under {self.run.settings.learning_rate}"
            )

    def _means(self) -> dict[str, float]:
        """Of the last tenth of the run: one step alone is too noisy to show, or to keep."""
        rows = self._losses[-max(1, self.run.steps // 10) :]
        return dict(zip(LOSSES, (sum(column) / len(rows) for column in zip(*rows, strict=True)), strict=True))

    def _rows(self) -> Tensor:
        return torch.tensor(self._losses, dtype=torch.float64).reshape(-1, len(LOSSES))

    def _now(self) -> Tensor:
        return self._learned_KD.detach().float().cpu().clone()

    def _seconds(self) -> float:
        return time.monotonic() - self._began


def _chosen_by(validation: Validation | None, found: Found) -> dict[str, Any]:
    """For segmenter.json: what the choice was made by, and between what."""
    if validation is None:
        return {}
    shown = {str(step): round(iou, 3) for step, iou in found.iou_by_step.items()}
    names = [example.name for example in validation.examples]
    return {
        "validation": {
            **found.report,
            "held_back": names[0] if validation.held_back else None,
            "step": found.step,
            "mean_iou_by_step": shown,
        }
    }


def _segmenter(run: Run, text_1TD: Tensor) -> Segmenter:
    """The run's segmenter with embeddings that have not learned yet."""
    backbone = run.backbone
    return Segmenter(
        text_embedding=text_1TD.float().cpu(),
        noise=sampled_noise(backbone.latent_size, run.seed, run.settings.noise_samples),
        parts=run.parts,
        colours=palette(len(run.parts)),
        backbone_id=backbone.id,
        backbone_hash=backbone.hash,
        tiny=backbone.tiny_name(run.settings.encoder),
        image_size=backbone.image_size,
        latent_size=backbone.latent_size,
        settings=run.settings,
        preset=run.preset,
        seed=run.seed,
        training_images=tuple(example.digest for example in run.examples),
        versions=library_versions(),
    )
