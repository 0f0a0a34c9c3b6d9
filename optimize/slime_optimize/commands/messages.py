"""What `slime optimize` says of a run: what is about to happen, how long the rest takes, and what came of it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tqdm import tqdm

from slime_optimize.method.run import Run
from slime_optimize.method.training import Learned
from slime_optimize.report import duration

_TIMED_STEPS = 5


def plan(this: Run, out: Path) -> str:
    """Return what is about to happen, in one line."""
    backbone, settings, side = this.backbone, this.settings, this.backbone.image_size
    images = f"{len(this.examples)} image{'s' if len(this.examples) > 1 else ''}"
    begins = f", begins from {this.begin.folder}" if this.begin else ""
    views = f" of {settings.batch_size} views" if settings.batch_size > 1 else ""
    return (
        f"backbone {backbone.id} on {backbone.device}, preset {this.preset} ({this.preset_from}), {images} at "
        f"{side} x {side} pixels, {this.steps} steps{views}, {len(this.parts)} parts ({', '.join(this.parts)})"
        f"{begins} -> {out}"
    )


class Clock:
    """Tells once, from a few steps after the first, which is slower, what the rest of a run will take."""

    def __init__(self) -> None:
        self._ends: list[float] = []

    def step(self, left: int) -> None:
        """Take the time of a step that has ended; `left` more are to come."""
        self._ends.append(time.monotonic())
        if len(self._ends) == 1 + _TIMED_STEPS:
            a_step = (self._ends[-1] - self._ends[0]) / _TIMED_STEPS
            # Above the progress bar.
            tqdm.write(f"{a_step:.2f} s a step: about {duration(left * a_step)} for the {left} steps that are left")
            sys.stdout.flush()


def summary(learned: Learned) -> str:
    """Return the parts and the mean IoU of a run that has ended, in one line."""
    metrics = learned.segmenter.metrics
    text = (
        f"{len(learned.segmenter.parts)} parts, mean IoU on the training data {metrics['training']['mean_iou']:.1f} %"
    )
    if "validation" in metrics:
        text += f", on validation {metrics['validation']['mean_iou']:.1f} % (step {metrics['step']})"
    return text
