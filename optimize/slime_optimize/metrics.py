"""Intersection over union, two ways, both labelled wherever they are printed.

per image   for each part, the mean over the images that have it (the paper's figure, the headline)
dataset     for each part, one ratio over all pixels of all images

Shape suffixes: P parts; confusions are [truth, prediction].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Report:
    """IoU in percent for each part (NaN where no image has it); means skip NaN."""

    parts: tuple[str, ...]
    images: int
    per_image_P: Floats
    dataset_P: Floats

    @property
    def mean(self) -> float:
        """The headline: mean over parts, background included, of the per-image IoU."""
        return _mean(self.per_image_P)

    @property
    def dataset_mean(self) -> float:
        return _mean(self.dataset_P)

    def as_json(self) -> dict[str, Any]:
        """Plain values; null where a part was in no image."""
        return {
            "images": self.images,
            "mean_iou": _plain(self.mean),
            "iou": dict(zip(self.parts, map(_plain, self.per_image_P), strict=True)),
            "dataset_mean_iou": _plain(self.dataset_mean),
            "dataset_iou": dict(zip(self.parts, map(_plain, self.dataset_P), strict=True)),
        }

    def table(self) -> str:
        """Lines of text: a row for each part, then the means."""
        width = max(len("mean IoU"), *(len(name) for name in self.parts))
        rows = [*zip(self.parts, self.per_image_P, self.dataset_P, strict=True)]
        rows.append(("mean IoU", self.mean, self.dataset_mean))
        head = f"{'IoU, %':<{width}}  per image   dataset"
        return "\n".join([head, *(f"{name:<{width}}  {a:9.1f} {b:9.1f}" for name, a, b in rows)])


def confusion(truth_HW: npt.NDArray[np.uint8], predicted_HW: npt.NDArray[np.uint8], parts: int) -> Ints:
    """Pixel counts (P,P) int64 by [truth, prediction]; both masks of one shape, values under `parts`."""
    if truth_HW.shape != predicted_HW.shape:
        raise ValueError(f"masks: got {predicted_HW.shape}, expected {truth_HW.shape} as the truth")
    pairs = truth_HW.astype(np.int64) * parts + predicted_HW
    counts: Ints = np.bincount(pairs.ravel(), minlength=parts * parts).reshape(parts, parts)
    return counts


def image_ious(confusion_PP: Ints) -> Floats:
    """IoU of each part in one image, 0..1; NaN for parts that its truth does not have."""
    return np.where(confusion_PP.sum(1) > 0, _ious(confusion_PP), np.nan)


def report(confusions_PP: Sequence[Ints], parts: Sequence[str]) -> Report:
    """Both IoUs over one confusion for each image."""
    each_IP = np.stack([image_ious(confusion_PP) for confusion_PP in confusions_PP])
    seen_P = np.isfinite(each_IP).sum(0)
    per_image_P: Floats = np.where(seen_P > 0, np.nansum(each_IP, 0) / np.maximum(seen_P, 1), np.nan)
    dataset_P = _ious(np.sum(confusions_PP, axis=0))
    return Report(
        parts=tuple(parts), images=len(confusions_PP), per_image_P=100 * per_image_P, dataset_P=100 * dataset_P
    )


def _ious(confusion_PP: Ints) -> Floats:
    both_P = np.diag(confusion_PP)
    either_P = confusion_PP.sum(0) + confusion_PP.sum(1) - both_P
    return np.where(either_P > 0, both_P / np.maximum(either_P, 1), np.nan)


def _mean(values_P: Floats) -> float:
    there = values_P[np.isfinite(values_P)]
    return float(there.mean()) if len(there) else float("nan")


def _plain(value: float) -> float | None:
    return round(float(value), 3) if np.isfinite(value) else None
