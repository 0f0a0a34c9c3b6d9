"""What a comparison with PyTorch found, the limits it is held to, and the report that is written beside a model.

    parity.json   variant, settings changed at export, comparisons (by batch), limits, PyTorch's own error, mean IoU,
                  what is in the graphs, failures

Differences are shares of the largest value of PyTorch's tensor; agreement is a share of pixels, 0 to 1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slime_export.errors import ParityError
from slime_export.graph.inspection import Counts
from slime_optimize.files import write_text
from slime_repository.variant import Variant

FILE = "parity.json"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Largest and mean absolute difference of two tensors, as shares of the reference's largest value."""

    largest: float
    mean: float


def difference(got: npt.NDArray[Any], expected: npt.NDArray[Any]) -> Difference:
    """Compare two tensors. Raises ParityError where their shapes differ."""
    if got.shape != expected.shape:
        raise ParityError(f"parity: got shape {got.shape}, expected {expected.shape}; nothing was published")
    scale = max(float(np.abs(expected).max()), float(np.finfo(np.float32).tiny))
    gap = np.abs(got - expected)
    return Difference(largest=float(gap.max()) / scale, mean=float(gap.mean()) / scale)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One batch: a Difference for each tensor, and the share of mask pixels that agree, 0 to 1."""

    batch: int
    tensors: Mapping[str, Difference]
    mask_agreement: float


@dataclass(frozen=True, kw_only=True)
class Drift:
    """The first block past a limit, or the one that differs most; `largest` as a share of its largest value."""

    layer: str
    largest: float

    def __str__(self) -> str:
        return f"{self.layer} drifts first ({self.largest:.2g} of its largest value)"


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The limits of a comparison: past any of them nothing is published. None is no limit."""

    own_error_times: float | None = 4.0  # of what PyTorch's fp32 itself errs by, against float64
    relative: float = 1e-4  # where PyTorch errs by less: fp32 sums in another order give about 1e-5
    mask_agreement: float = 0.999
    iou_points: float | None = None

    def limit(self, own_error: float) -> float | None:
        """Return the largest difference allowed in a tensor that PyTorch's own fp32 errs in by `own_error`."""
        return None if self.own_error_times is None else max(self.relative, self.own_error_times * own_error)


EXACT = Gate()
LOWER = Gate(own_error_times=None, mask_agreement=0.99, iou_points=1.0)


def gate_of(precision: str) -> Gate:
    """Return a precision's limits: fp32 has to be exact, lower precisions are held to their masks."""
    return EXACT if precision == "fp32" else LOWER


@dataclass(frozen=True, kw_only=True)
class Score:
    """Mean IoU over the parts, in points: PyTorch's before, the exported models' after, on `images` images."""

    before: float
    after: float
    images: int
    source: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that was measured of one export; `failures` is empty where everything is within `gate`.

    own_error: PyTorch's fp32 against float64, by tensor. graphs: of the models that are published. settings_changed:
    the test-time settings that were changed at export, with the values it was proven with.
    """

    comparisons: tuple[Comparison, ...]
    gate: Gate = EXACT
    variant: Variant = field(default_factory=Variant)
    own_error: Mapping[str, Difference] = field(default_factory=dict)
    score: Score | None = None
    graphs: Mapping[str, Counts] = field(default_factory=dict)
    drift: Drift | None = None
    settings_changed: Mapping[str, Any] = field(default_factory=dict)

    def limit(self, tensor: str) -> float | None:
        """Return what the tensor's largest difference may be, or None."""
        own = self.own_error.get(tensor)
        return self.gate.limit(own.largest if own else 0.0)

    @property
    def failures(self) -> list[str]:
        """One line for each limit that is not kept. Comparisons are written so that NaN fails."""
        found = []
        for each in self.comparisons:
            for name, gap in each.tensors.items():
                if (limit := self.limit(name)) is not None and not gap.largest <= limit:
                    found.append(
                        f"{name} at batch {each.batch} differs by {gap.largest:.2g} of the largest value, "
                        f"expected at most {limit:.2g}"
                    )
            if not each.mask_agreement >= self.gate.mask_agreement:
                found.append(
                    f"masks at batch {each.batch} agree on {100 * each.mask_agreement:.3f} % of pixels, expected "
                    f"{100 * self.gate.mask_agreement:g} %"
                )
        if self.score is not None and self.gate.iou_points is not None:
            lost = self.score.before - self.score.after
            if not lost <= self.gate.iou_points:
                found.append(f"mean IoU falls by {lost:.2f} points, expected at most {self.gate.iou_points:g}")
        return found

    def require(self) -> None:
        """Raise ParityError, naming the first failure and where it begins, unless everything is within the gate."""
        if self.failures:
            where = f"; {self.drift}" if self.drift else ""
            raise ParityError(f"parity: {self.failures[0]}{where}; nothing was published")

    def table(self) -> str:
        """Return lines for people: one for each tensor and batch, for the masks, and for each graph."""
        changed = ", ".join(f"{name} {value}" for name, value in self.settings_changed.items())
        lines = [f"settings changed at export: {changed}"] if changed else []
        lines.append("batch  tensor      largest    mean")
        for each in self.comparisons:
            for name, gap in each.tensors.items():
                lines.append(f"{each.batch:>5}  {name:<9}  {gap.largest:.2e}  {gap.mean:.2e}")
            lines.append(f"{each.batch:>5}  masks      {100 * each.mask_agreement:.3f} % of pixels agree")
        for name, own in self.own_error.items():
            limit = self.limit(name)
            held = "not limited" if limit is None else f"limit {limit:.2e}"
            lines.append(f"       {name}: PyTorch's fp32 itself errs by {own.largest:.2e} against float64; {held}")
        if self.score:
            images = f"{self.score.images} images of {self.score.source}"
            lines.append(f"mean IoU on {images}: {self.score.before:.2f} in PyTorch, {self.score.after:.2f} exported")
        for name, counts in self.graphs.items():
            shares = ", ".join(f"{100 * counts.share(each):.1f} % {each}" for each in counts.macs_by_precision)
            macs, megabytes = counts.macs / 1e9, counts.bytes / 1e6
            lines.append(f"{name}: {counts.nodes} nodes, {macs:.3g} GMAC an image ({shares}), {megabytes:.1f} MB")
        return "\n".join(lines)

    def write(self, folder: Path) -> None:
        """Write parity.json into `folder`, which must exist."""
        write_text(folder / FILE, json.dumps(self.as_json(), indent=2) + "\n")

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain JSON values, with the limits and failures that follow from it."""
        tensors = {name for each in self.comparisons for name in each.tensors}
        limits = {name: self.limit(name) for name in sorted(tensors)}
        return asdict(self) | {
            "limits": limits,
            "gmac": {name: counts.macs / 1e9 for name, counts in self.graphs.items()},
            "share_of_macs": {
                name: {each: counts.share(each) for each in counts.macs_by_precision}
                for name, counts in self.graphs.items()
            },
            "failures": self.failures,
        }
