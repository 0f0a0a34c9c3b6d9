"""What a comparison with PyTorch found, the limits it is held to, and the report that lies beside a model.

    parity.json   form, comparisons (by batch), limits, PyTorch's own error, mean IoU, what is in the graphs, failures

Differences are shares of the largest value of PyTorch's tensor; agreement is a share of pixels, 0 to 1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from slime_export.errors import ParityError
from slime_export.graph.counts import Counts
from slime_export.proof.difference import Difference
from slime_export.proof.drift import Drift
from slime_optimize.files import write_text
from slime_repository.variant import Variant

FILE = "parity.json"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One batch: a Difference for each tensor, and the share of mask pixels that agree, 0 to 1."""

    batch: int
    tensors: Mapping[str, Difference]
    mask_agreement: float


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Past any of it nothing is published; None is no limit."""

    own_error_times: float | None = 4.0  # of what PyTorch's fp32 itself errs by, against float64
    relative: float = 1e-4  # where PyTorch errs by less: fp32 sums in another order give about 1e-5
    mask_agreement: float = 0.999
    iou_points: float | None = None

    def limit(self, own_error: float) -> float | None:
        """The largest relative difference of a tensor that PyTorch's fp32 errs in by `own_error`."""
        return None if self.own_error_times is None else max(self.relative, self.own_error_times * own_error)


EXACT = Gate()
LOWER = Gate(own_error_times=None, mask_agreement=0.99, iou_points=1.0)


def gate_of(precision: str) -> Gate:
    """fp32 is to be exact; lower precisions are held to their masks."""
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

    own_error: PyTorch's fp32 against float64, by tensor. graphs: of the models that are published.
    """

    comparisons: tuple[Comparison, ...]
    gate: Gate = EXACT
    variant: Variant = field(default_factory=Variant)
    own_error: Mapping[str, Difference] = field(default_factory=dict)
    score: Score | None = None
    graphs: Mapping[str, Counts] = field(default_factory=dict)
    drift: Drift | None = None

    def limit(self, tensor: str) -> float | None:
        """What the tensor's largest difference may be, or None."""
        own = self.own_error.get(tensor)
        return self.gate.limit(own.largest if own else 0.0)

    @property
    def failures(self) -> list[str]:
        """One line for each limit that is not kept, written so that NaN fails."""
        found = []
        for each in self.comparisons:
            for name, difference in each.tensors.items():
                if (limit := self.limit(name)) is not None and not difference.largest <= limit:
                    found.append(
                        f"{name} at batch {each.batch} differs by {difference.largest:.2g} of the largest value, "
                        f"expected at most {limit:.2g}"
                    )
            if not each.mask_agreement >= self.gate.mask_agreement:
                found.append(
                    f"masks at batch {each.batch} agree on {100 * each.mask_agreement:.3f} % of pixels, expected "
                    f"{100 * self.gate.mask_agreement:g} %"
                )
        return found + self._lost()

    def begins_with(self, tensor: str) -> bool:
        """Whether the first failure is this tensor's."""
        return self.failures[0].startswith(tensor)

    def _lost(self) -> list[str]:
        if self.score is None or self.gate.iou_points is None:
            return []
        lost = self.score.before - self.score.after
        within = lost <= self.gate.iou_points
        return [] if within else [f"mean IoU falls by {lost:.2f} points, expected at most {self.gate.iou_points:g}"]

    def require(self) -> None:
        """Raises ParityError, naming the first failure and where it begins, unless everything is within the gate."""
        if self.failures:
            where = f"; {self.drift}" if self.drift else ""
            raise ParityError(f"parity: {self.failures[0]}{where}; nothing was published")

    def table(self) -> str:
        """For people: a line for each tensor and batch, for the masks, for each graph."""
        lines = ["batch  tensor      largest    mean"]
        for each in self.comparisons:
            for name, difference in each.tensors.items():
                lines.append(f"{each.batch:>5}  {name:<9}  {difference.largest:.2e}  {difference.mean:.2e}")
            lines.append(f"{each.batch:>5}  masks      {100 * each.mask_agreement:.3f} % of pixels agree")
        for name, own in self.own_error.items():
            limit = self.limit(name)
            held = "not limited" if limit is None else f"limit {limit:.2e}"
            lines.append(f"       {name}: PyTorch's fp32 itself errs by {own.largest:.2e} against float64; {held}")
        if self.score:
            images = f"{self.score.images} images of {self.score.source}"
            lines.append(f"mean IoU on {images}: {self.score.before:.2f} in PyTorch, {self.score.after:.2f} exported")
        lines += [_of_graph(name, counts) for name, counts in self.graphs.items()]
        return "\n".join(lines)

    def write(self, folder: Path) -> None:
        """Writes parity.json into `folder`, which must exist."""
        write_text(folder / FILE, json.dumps(self.as_json(), indent=2) + "\n")

    def as_json(self) -> dict[str, Any]:
        """Everything, and the limits and failures that follow from it."""
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


def _of_graph(name: str, counts: Counts) -> str:
    shares = ", ".join(f"{100 * counts.share(each):.1f} % {each}" for each in counts.macs_by_precision)
    return (
        f"{name}: {counts.nodes} nodes, {counts.macs / 1e9:.3g} GMAC an image ({shares}), {counts.bytes / 1e6:.1f} MB"
    )
