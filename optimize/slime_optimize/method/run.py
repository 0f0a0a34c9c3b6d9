"""A run: what it learns, from what, how, and where it begins.

Shape suffixes: B views of a step, K parts, h, w latent sides, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from slime_optimize.backbone import TOKENS, Backbone
from slime_optimize.data.annotations import Example, check_parts
from slime_optimize.data.validation import Validation
from slime_optimize.errors import InputError
from slime_optimize.method.augmentation import views
from slime_optimize.method.checkpoint import digest
from slime_optimize.method.losses import Stepper
from slime_optimize.method.precision import FP32
from slime_optimize.segmenter import in_place
from slime_optimize.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run learns, from what, and how; `precision_from` says in words why the UNet computes in `precision`.

    Raises InputError for parts that cannot be learned and for no images, BackboneError for a missing tiny encoder.
    """

    backbone: Backbone
    examples: tuple[Example, ...]
    parts: tuple[str, ...]
    settings: Settings
    seed: int = 0
    preset: str = "paper"
    preset_from: str = ""
    validation: Validation | None = None
    precision: str = FP32
    precision_from: str = ""

    def __post_init__(self) -> None:
        check_parts(self.parts)
        self.backbone.tiny_name(self.settings.encoder)
        if not self.examples:
            raise InputError("training data: got no image, expected one or more with their masks")

    @property
    def steps(self) -> int:
        """Number of optimisation steps."""
        return self.settings.total_steps(len(self.examples))

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the embeddings, as plain JSON values; a checkpoint is of no use to another run."""
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
            **({} if self.precision == FP32 else {"precision": self.precision}),
        }

    @property
    def stepper(self) -> Stepper:
        """What computes the losses of its steps."""
        parts, seed = len(self.parts), self.seed
        return Stepper(backbone=self.backbone, settings=self.settings, parts=parts, seed=seed, precision=self.precision)


def initial_text(backbone: Backbone, settings: Settings, parts: int) -> Tensor:
    """Return the embedding of the prompt word, repeated, (1,T,D) float32; its first row is the background's."""
    times = TOKENS if settings.prompt_times == "tokens" else parts
    return backbone.encode_text(" ".join([settings.prompt_word] * times)).float()


def first_step(run: Run) -> Callable[[str], None]:
    """Return a function that takes the run's first step in a given precision, and forgets what it gave."""
    latents_B4hw, mask_Bhw = next(iter(views(run.backbone, run.examples, run.settings, run.seed, 1)))
    start_1TD = initial_text(run.backbone, run.settings, len(run.parts))

    def step(precision: str) -> None:
        learned_KD = start_1TD[0, 1 : len(run.parts)].clone().requires_grad_(True)
        stepper = replace(run, precision=precision).stepper
        torch.autograd.backward(stepper.losses(latents_B4hw, mask_Bhw, in_place(start_1TD, learned_KD), 0).total)

    return step
