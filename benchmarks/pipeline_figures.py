"""From seconds and bytes to the figures that are shown: medians, spread, ratios. Knows nothing of processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
from benchmarks.pipeline_side import STAGES

PRODUCT = "product"
PRODUCT_MACS = 3072**3
REFERENCE = "torch"  # masks are compared with those of our PyTorch

Seconds = Sequence[Mapping[str, float]]


def result_of(
    runs: Mapping[str, Seconds],
    batches: Mapping[str, Mapping[int, Seconds]],
    peaks: Mapping[str, float],
    macs: Mapping[str, int],
    masks: Mapping[str, Any],
) -> dict[str, Any]:
    """Rows by variant, ratios, agreement of masks, and what the machine can do at most."""
    fastest = PRODUCT_MACS / min(each["unet"] for each in runs[PRODUCT])
    rows = {
        name: _row(seconds, batches.get(name, {}), peaks[name], macs[name], fastest)
        for name, seconds in runs.items()
        if name != PRODUCT
    }
    return {
        "product_gmacs": round(fastest / 1e9, 1),
        "rows": rows,
        "agreement": agreement(masks),
        "ratios": ratios(rows),
    }


def _row(
    seconds: Seconds, batches: Mapping[int, Seconds], peak_bytes: float, macs: int, fastest: float
) -> dict[str, Any]:
    totals = [each["total"] for each in seconds]
    per_second = {"1": 1 / median(totals)}
    per_second |= {str(size): size / median(each["total"] for each in of) for size, of in batches.items()}
    return {
        "ms": _ms(median(totals)),
        "least_ms": _ms(min(totals)),
        "most_ms": _ms(max(totals)),
        "stages_ms": {stage: _ms(median(each[stage] for each in seconds)) for stage in STAGES},
        "images_per_second": {size: round(each, 3) for size, each in per_second.items()},
        "peak_gb": round(peak_bytes / 1e9, 3),
        "gmac": round(macs / 1e9, 2),
        "share_of_product": round(macs / median(totals) / fastest, 3),
    }


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 2)


def agreement(masks: Mapping[str, Any]) -> dict[str, float]:
    """Share of pixels on which each variant's masks are our PyTorch's; the published form's have noise of their own."""
    if REFERENCE not in masks:
        return {}
    others = {name: each for name, each in masks.items() if name not in (REFERENCE, "published")}
    return {name: round(float(np.mean(each == masks[REFERENCE])), 6) for name, each in others.items()}


def ratios(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """How many times faster than the published form, its memory's share, and step against step; of what is there."""
    found: dict[str, float] = {}
    others = [name for name in rows if name != "published"] if "published" in rows else []
    for name in others:
        found[name] = rows["published"]["ms"] / rows[name]["ms"]
        found[f"memory_{name}"] = rows[name]["peak_gb"] / rows["published"]["peak_gb"]
    for ratio, (slow, fast, stage) in _STEPS.items():
        if slow in rows and fast in rows:
            found[ratio] = _step(rows[slow], stage) / _step(rows[fast], stage)
    return {name: round(found[name], 3) for name in sorted(found)}


# The slower variant, the faster one, the stage (or all of them).
_STEPS = {
    "weighted_to_averaged": ("averaged", "weighted", "total"),
    "int8_unet": ("weighted", "int8", "unet"),
    "tiny_encoder": ("weighted", "tiny", "encode"),
}


def _step(row: Mapping[str, Any], stage: str) -> float:
    return float(row["ms"] if stage == "total" else row["stages_ms"][stage])


def growth_figures(seconds: Mapping[str, Seconds]) -> dict[str, float]:
    """Medians in milliseconds, by key."""
    return {key: _ms(median(each["total"] for each in of)) for key, of in seconds.items()}


def flatness(by_parts: Mapping[str, float], few: int = 2, many: int = 24) -> dict[str, float]:
    """How much dearer `many` parts are than `few`, as a share, by variant."""
    names = {key.rpartition("-")[0] for key in by_parts}
    return {
        name: round(by_parts[f"{name}-{many}"] / by_parts[f"{name}-{few}"] - 1, 4)
        for name in sorted(names)
        if f"{name}-{many}" in by_parts and f"{name}-{few}" in by_parts
    }
