"""The verdict on a run: what its own training images show that it did not learn, and what to try.

A segmenter that fails here fails everywhere. One that does not may still fail on other images, which only annotated
ones can tell (slime evaluate).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from slime_optimize.backbone import EMBEDDED
from slime_optimize.data.annotations import IGNORED
from slime_optimize.method.run import Run
from slime_optimize.method.training import Learned
from slime_optimize.presets import PRESETS, chosen_preset, preset

LOWEST_IOU = 20.0  # percent, on the images that the part was learned from
_NEVER = 1.0  # percent: a few pixels by chance
_ENOUGH_STEPS = 10  # for the losses of the first tenth and of the last to be compared
_SMALL = 6  # places of the maps, which are as large as the latents


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What went wrong, a sentence each, and what to try; both empty where every part was learned."""

    findings: tuple[str, ...] = ()
    tries: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return what the command prints after a run."""
        if not self.findings:
            return ["verdict: every part is found on the training data, which is no test: slime evaluate measures one"]
        return [f"verdict: {each}" for each in self.findings] + [f"try: {each}" for each in self.tries]


def lost_parts(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the parts, the background among them, with an IoU under LOWEST_IOU on the training data, in percent.

    `metrics` are a segmenter's. Those of published embeddings tell nothing of training data, and so of no lost part.
    """
    ious = metrics.get("training", {}).get("iou", {})
    return {part: iou for part, iou in ious.items() if iou is not None and iou < LOWEST_IOU}


def told(lost: Mapping[str, float]) -> str:
    """Return the lost parts with their IoU, for people."""
    return ", ".join(f"{part} {iou:.1f} %" for part, iou in lost.items())


def verdict(learned: Learned, run: Run) -> Verdict:
    """Judge a run that is over by the IoU on its training data, and by whether its loss fell."""
    lost = lost_parts(learned.segmenter.metrics)
    background = lost.get(run.parts[0])
    findings = []
    if background is not None:
        how = "never" if background < _NEVER else "hardly"
        findings.append(f"the background is {how} found (IoU {background:.1f} % on the training data)")
    if parts := {part: iou for part, iou in lost.items() if part != run.parts[0]}:
        findings.append(f"not learned: {told(parts)} IoU on the training data, under {LOWEST_IOU:g} %")
    first, last = _losses(learned, run)
    if not last < first and run.steps >= _ENOUGH_STEPS:
        findings.append(f"the loss did not fall: {first:.3g} in the first tenth of the steps, {last:.3g} in the last")
    if not findings:
        return Verdict()
    return Verdict(findings=tuple(findings), tries=tuple(_tries(run, lost, fell=last < first)))


def _losses(learned: Learned, run: Run) -> tuple[float, float]:
    """Return the mean total loss (eq. 8) over the first tenth of the steps, and over the last."""
    settings, rows_SL = run.settings, learned.losses_SL.numpy()
    total_S = rows_SL @ np.array([1.0, settings.alpha, settings.beta])
    tenth = max(1, len(total_S) // 10)
    return float(total_S[:tenth].mean()), float(total_S[-tenth:].mean())


def _tries(run: Run, lost: Mapping[str, float], *, fell: bool) -> Iterator[str]:
    """Yield what applies to this run, the likeliest first."""
    backbone, name = run.backbone, run.preset if run.preset in PRESETS else "paper"
    own = preset(name, backbone.recommended)
    if run.steps < (wanted := own.total_steps(len(run.examples))):
        yield f"more steps: --steps {wanted}, as preset {name} has for this backbone"
    if run.settings.learning_rate != own.learning_rate:
        yield f"--learning-rate {own.learning_rate:g}, as preset {name} has for this backbone"
    elif not fell:
        yield f"a lower learning rate: --learning-rate {own.learning_rate / 2:g}"
    usual, _ = chosen_preset(None, backbone.recommended)
    if other := next((each for each in (usual, "best") if each != name), None):
        yield f"--preset {other}"
    if small := [part for part in lost if part != run.parts[0] and _places(run, part) < _SMALL]:
        size = f"{backbone.latent_size} x {backbone.latent_size}"
        yield f"an image cut closer to the thing: {', '.join(small)} cover under {_SMALL} of the maps' {size} places"
    if backbone.id == EMBEDDED:
        yield (
            "a Stable Diffusion checkpoint (--backbone), unless these are drawings as slime demo makes them: the "
            "embedded backbone was trained on nothing else"
        )
    yield "another annotated image beside this one, after a look at the masks in preview.png"


def _places(run: Run, part: str) -> float:
    """Return how many places of the maps a part covers where it is largest."""
    number = run.parts.index(part)
    shares = [np.mean(each.mask_HW[each.mask_HW != IGNORED] == number) for each in run.examples]
    return float(max(shares)) * run.backbone.latent_size**2
