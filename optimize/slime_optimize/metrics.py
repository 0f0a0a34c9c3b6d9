"""Intersection over union, two ways, both labelled wherever they are printed.

per image   for each part, the mean over the images that have it (the paper's figure, the headline)
dataset     for each part, one ratio over all pixels of all images

A `Report` is for one segmenter, a `Summary` for several that differ only in their seed.

Shape suffixes: P parts, I images, S reports; confusions are [truth, prediction].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from slime_optimize.data.annotations import IGNORED
from slime_optimize.tables import Figure, Table

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
        return mean_there(self.per_image_P)

    @property
    def dataset_mean(self) -> float:
        """Mean over parts of the data set's IoU."""
        return mean_there(self.dataset_P)

    def as_json(self) -> dict[str, Any]:
        """Return plain values; null where a part was in no image."""
        return Summary(reports=(self,)).as_json()

    def table(self) -> str:
        """Return lines of text: a row for each part, then the means."""
        return Summary(reports=(self,)).table().text()


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Several reports on the same parts and images: every figure is the mean over them, with a standard deviation.

    The deviation is the population's (divided by the number of reports); a single report has none.
    """

    reports: tuple[Report, ...]

    def __post_init__(self) -> None:
        kinds = {(each.parts, each.images) for each in self.reports}
        if len(kinds) != 1:
            raise ValueError(f"summary: got reports of {len(kinds)} data sets, expected one")

    @property
    def parts(self) -> tuple[str, ...]:
        """Part names, background first."""
        return self.reports[0].parts

    @property
    def mean(self) -> Figure:
        """The headline figure, over the reports."""
        return spread([each.mean for each in self.reports])

    @property
    def dataset_mean(self) -> Figure:
        """Mean over parts of the data set's IoU, over the reports."""
        return spread([each.dataset_mean for each in self.reports])

    @property
    def per_image(self) -> dict[str, Figure]:
        """For each part, the mean over the images that have it."""
        each_SP = np.stack([each.per_image_P for each in self.reports])
        return dict(zip(self.parts, map(spread, each_SP.T), strict=True))

    @property
    def dataset(self) -> dict[str, Figure]:
        """For each part, one ratio over all pixels."""
        each_SP = np.stack([each.dataset_P for each in self.reports])
        return dict(zip(self.parts, map(spread, each_SP.T), strict=True))

    def table(self) -> Table:
        """Return a table with a row for each part, then the means; both metrics side by side."""
        per_image, dataset = self.per_image, self.dataset
        rows = [(name, per_image[name], dataset[name]) for name in self.parts]
        rows.append(("mean IoU", self.mean, self.dataset_mean))
        return Table(columns=("IoU, %", "per image", "dataset"), rows=tuple(rows))

    def as_json(self) -> dict[str, Any]:
        """Return means under the keys of a single report; for several, also `std`, deviations under the same keys."""
        values = {"images": self.reports[0].images, **self._plain(lambda figure: figure.mean)}
        if len(self.reports) > 1:
            values["std"] = self._plain(lambda figure: figure.std)
        return values

    def _plain(self, read: Callable[[Figure], float | None]) -> dict[str, Any]:
        return {
            "mean_iou": _plain(read(self.mean)),
            "iou": {name: _plain(read(figure)) for name, figure in self.per_image.items()},
            "dataset_mean_iou": _plain(read(self.dataset_mean)),
            "dataset_iou": {name: _plain(read(figure)) for name, figure in self.dataset.items()},
        }


def spread(values: Floats | Sequence[float]) -> Figure:
    """Return mean and population standard deviation of the finite values; a single value has no deviation."""
    given = np.asarray(values, dtype=np.float64)
    there = given[np.isfinite(given)]
    if not len(there):
        return Figure(mean=float("nan"))
    return Figure(mean=float(there.mean()), std=float(there.std()) if len(given) > 1 else None)


def confusion(truth_HW: npt.NDArray[np.uint8], predicted_HW: npt.NDArray[np.uint8], parts: int) -> Ints:
    """Return pixel counts (P,P) int64 by [truth, prediction] of two masks of one shape, with values under `parts`.

    Pixels whose truth is IGNORED are not counted.
    """
    if truth_HW.shape != predicted_HW.shape:
        raise ValueError(f"masks: got {predicted_HW.shape}, expected {truth_HW.shape} as the truth")
    counted_HW = truth_HW != IGNORED
    pairs = truth_HW[counted_HW].astype(np.int64) * parts + predicted_HW[counted_HW]
    counts: Ints = np.bincount(pairs, minlength=parts * parts).reshape(parts, parts)
    return counts


def image_ious(confusion_PP: Ints) -> Floats:
    """Return the IoU of each part in one image, (P,) 0..1; NaN for parts that its truth does not have."""
    return np.where(confusion_PP.sum(1) > 0, _ious(confusion_PP), np.nan)


def image_score(confusion_PP: Ints) -> float:
    """Return one image's mean IoU over the parts that its truth has, in percent."""
    return 100 * mean_there(image_ious(confusion_PP))


def report(confusions_PP: Sequence[Ints], parts: Sequence[str]) -> Report:
    """Return both IoUs from one confusion for each image."""
    each_IP = np.stack([image_ious(confusion_PP) for confusion_PP in confusions_PP])
    seen_P = np.isfinite(each_IP).sum(0)
    per_image_P: Floats = np.where(seen_P > 0, np.nansum(each_IP, 0) / np.maximum(seen_P, 1), np.nan)
    dataset_P = _ious(np.sum(confusions_PP, axis=0))
    return Report(
        parts=tuple(parts), images=len(confusions_PP), per_image_P=100 * per_image_P, dataset_P=100 * dataset_P
    )


def smallest_third(masks_HW: Sequence[npt.NDArray[np.uint8]], parts: Sequence[str]) -> tuple[str, ...]:
    """Return the third of the parts, without the background and at least one, that cover the least of these masks."""
    counted = [mask[mask != IGNORED] for mask in masks_HW]
    shares_IP = [np.bincount(values, minlength=len(parts)) / max(1, values.size) for values in counted]
    by_size = np.argsort(np.mean(shares_IP, axis=0)[1:], kind="stable") + 1
    return tuple(parts[index] for index in sorted(by_size[: max(1, round((len(parts) - 1) / 3))]))


def mean_there(values: Floats) -> float:
    """Return the mean of the finite values; NaN where there is none."""
    there = values[np.isfinite(values)]
    return float(there.mean()) if len(there) else float("nan")


def _ious(confusion_PP: Ints) -> Floats:
    both_P = np.diag(confusion_PP)
    either_P = confusion_PP.sum(0) + confusion_PP.sum(1) - both_P
    return np.where(either_P > 0, both_P / np.maximum(either_P, 1), np.nan)


def _plain(value: float | None) -> float | None:
    return round(float(value), 3) if value is not None and np.isfinite(value) else None
