"""A run: what it learns, from what, how, and where it begins.

Shape suffixes: B views of a step, K parts, h, w latent sides, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from slime_optimize.method.precision import FP32, Decision
from slime_optimize.segmenter import Segmenter, in_place
from slime_optimize.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Begin:
    """A segmenter whose embeddings a run starts from, and the folder that it was loaded from."""

    segmenter: Segmenter
    folder: str = ""

    @property
    def record(self) -> dict[str, str]:
        """What is kept of it in the segmenter that is learned."""
        return {"segmenter": self.folder, "hash": self.segmenter.hash}

    def check(self, backbone: Backbone, parts: Sequence[str], settings: Settings) -> None:
        """Raise InputError where its embeddings mean something else in a run with this backbone, parts and settings.

        Embeddings belong to one backbone, each to one part, and were learned between the other rows of the text: the
        background's, and those of the tokens that no part has.
        """
        begin, subject = self.segmenter, f"--begin {self.folder}"
        if begin.backbone_hash != backbone.hash:
            raise InputError(
                f"{subject}: was learned on backbone {begin.backbone_id} ({begin.backbone_hash[:12]}), this run is on "
                f"{backbone.id} ({backbone.hash[:12]}); give --backbone {begin.backbone_id}, or leave --begin out"
            )
        if begin.parts != tuple(parts):
            raise InputError(
                f"{subject}: has the parts {', '.join(begin.parts)}, this run {', '.join(parts)}; expected the same "
                "parts in the same order, or leave --begin out"
            )
        text_1TD = initial_text(backbone, settings, len(parts)).cpu()
        if begin.text_embedding.shape != text_1TD.shape or not torch.allclose(
            in_place(text_1TD, begin.embeddings), begin.text_embedding, rtol=1e-3, atol=1e-3
        ):
            made = begin.settings
            raise InputError(
                f"{subject}: its text around the parts is another (prompt word {made.prompt_word!r} for each of the "
                f"{made.prompt_times}, here {settings.prompt_word!r} for each of the {settings.prompt_times}); give "
                f"--prompt-word {made.prompt_word} --prompt-times {made.prompt_times}, or leave --begin out"
            )


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run learns, from what, and how; `precision_from` says in words why the UNet computes in `precision`.

    begin: where its embeddings start, in place of the prompt word's. Raises InputError for parts that cannot be
    learned, for no images and for a `begin` that does not fit, BackboneError for a missing tiny encoder.
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
    begin: Begin | None = None

    def __post_init__(self) -> None:
        check_parts(self.parts)
        self.backbone.tiny_name(self.settings.encoder)
        if not self.examples:
            raise InputError("training data: got no image, expected one or more with their masks")
        if self.begin:
            self.begin.check(self.backbone, self.parts, self.settings)

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
            **({"begins from": self.begin.segmenter.hash} if self.begin else {}),
        }

    def computing_in(self, decision: Decision) -> Run:
        """Return the run with the precision that was decided for its UNet."""
        return replace(self, precision=decision.precision, precision_from=decision.reason)

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
