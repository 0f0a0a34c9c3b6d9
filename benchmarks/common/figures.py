"""From samples to figures: percentiles, ratios of paired runs with their intervals, and goals. Plain numbers only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_RESAMPLES = 2000


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the percentile of `values`, or None if there are none."""
    return float(np.percentile(values, share)) if values else None


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, 95th percentile, maximum and number of `values`; nothing if there are none."""
    if not values:
        return {}
    median, high = np.percentile(values, [50, 95])
    found = {"median": float(median), "p95": float(high), "max": float(max(values))}
    return {name: round(value, 3) for name, value in found.items()} | {"count": len(values)}


def ratio(numerators: Sequence[float], denominators: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """Return the geometric mean of paired ratios, and the 95 % interval that resampling the pairs gives."""
    logs = np.log(np.asarray(numerators, np.float64) / np.asarray(denominators, np.float64))
    generator = np.random.default_rng(seed)
    means = logs[generator.integers(0, len(logs), (_RESAMPLES, len(logs)))].mean(axis=1)
    low, high = np.exp(np.percentile(means, [2.5, 97.5]))
    return {"ratio": float(np.exp(logs.mean())), "low": float(low), "high": float(high), "pairs": len(logs)}


def growth(samples: Sequence[Mapping[str, float]], skipped: float = 0.2) -> dict[str, dict[str, float]]:
    """Return for each name its value at the `begin` and the `end` of a long run, and the difference.

    Both are medians: of the tenth of the samples that follows the first fifth, and of the last tenth. The first fifth
    is left out, because the server's memory grows until it has the size that its largest batch needs.
    """
    tenth = max(1, len(samples) // 10)
    first = samples[int(skipped * len(samples)) :][:tenth]
    found = {}
    for name in samples[-1]:
        begin, end = (float(np.median([each.get(name, 0.0) for each in part])) for part in (first, samples[-tenth:]))
        found[name] = {"begin": begin, "end": end, "growth": end - begin}
    return found


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A figure that is to be at least (≥) or at most (≤) `wanted`. `form` formats both for the page."""

    label: str
    relation: str
    wanted: float
    form: str = "g"

    def row(self, value: Any, shown: str = "") -> tuple[str, str, str, str]:
        """Return label, wanted, measured and verdict, for a number, for a ratio with its interval, or for None.

        shown: what the page says instead of the number itself.
        """
        wanted = f"{self.relation} {self.wanted:{self.form}}"
        if value is None:
            return self.label, wanted, "none", ""
        point = value["ratio"] if isinstance(value, Mapping) else value
        met = point <= self.wanted if self.relation == "≤" else point >= self.wanted
        return self.label, wanted, shown or interval(value, self.form), "met" if met else "missed"


def interval(value: Any, form: str = ".3f") -> str:
    """Return a number, or a ratio with its interval, as text."""
    if not isinstance(value, Mapping):
        return f"{value:{form}}"
    return f"{value['ratio']:{form}} ({value['low']:{form}} to {value['high']:{form}})"
