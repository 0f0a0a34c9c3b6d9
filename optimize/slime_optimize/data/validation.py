"""Validation images, which say which of a run's embeddings are best: a folder's, or one held back from training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from slime_optimize.data.annotations import IGNORED, Example
from slime_optimize.errors import InputError
from slime_optimize.method.prediction import Predictor
from slime_optimize.metrics import Report, confusion, report

_TIMES = 10  # over a run: a test pass costs about one or two steps, so that this is a few per cent of the run
_MIN_IMAGES = 3  # with two images, holding one back would halve what there is to learn from


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Images that embeddings are measured on every `every` steps (None: ten times over the run), and after the last.

    held_back: whether the examples were among the training images.
    """

    examples: tuple[Example, ...]
    every: int | None = None
    held_back: bool = False

    def __post_init__(self) -> None:
        if not self.examples:
            raise InputError("validation data: got no image, expected one or more with their masks")
        if self.every is not None and self.every < 1:
            raise InputError(f"validate every: got {self.every} steps, expected 1 or more")

    def is_due(self, step: int, steps: int) -> bool:
        """Return whether to measure after `step` of `steps` steps."""
        return step == steps or step % (self.every or max(1, -(-steps // _TIMES))) == 0


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Validation so far: mean IoU in percent by step; the best one's step, embeddings (K-1,D) and report."""

    iou_by_step: Mapping[int, float] = field(default_factory=dict)
    step: int = 0
    learned_KD: Tensor | None = None
    report: Mapping[str, Any] = field(default_factory=dict)

    def and_then(self, step: int, learned_KD: Tensor, measured: Report) -> Measured:
        """Return the results with one more; of equals the later is kept, which has learned for longer."""
        scores = {**self.iou_by_step, step: measured.mean}
        if self.learned_KD is not None and measured.mean < self.iou_by_step[self.step]:
            return Measured(iou_by_step=scores, step=self.step, learned_KD=self.learned_KD, report=self.report)
        return Measured(iou_by_step=scores, step=step, learned_KD=learned_KD, report=measured.as_json())


def measure(predictor: Predictor, examples: Sequence[Example]) -> Report:
    """Return the IoU over the examples, each at its image's own size."""
    return compared(examples, predictor.masks([example.image_HW3 for example in examples]), predictor.segmenter.parts)


def compared(examples: Sequence[Example], masks_HW: Sequence[Any], parts: Sequence[str]) -> Report:
    """Return the IoU of predicted masks, uint8 (H,W), with the examples' own."""
    pairs = zip(examples, masks_HW, strict=True)
    return report([confusion(example.mask_HW, mask, len(parts)) for example, mask in pairs], parts)


def hold_back(examples: Sequence[Example]) -> tuple[list[Example], Example | None]:
    """Return the images to learn from and the one to choose by: of three or more, the last that can be spared.

    One can be spared when every part it shows is in another image too. Where there is none: all images, and None.
    """
    wanted = _painted(examples)
    for index in reversed(range(len(examples))) if len(examples) >= _MIN_IMAGES else ():
        rest = [*examples[:index], *examples[index + 1 :]]
        if _painted(rest) == wanted:
            return rest, examples[index]
    return list(examples), None


def _painted(examples: Sequence[Example]) -> set[int]:
    """Return the ids of the painted parts, without the background."""
    return {int(value) for example in examples for value in np.unique(example.mask_HW)} - {0, IGNORED}
