"""What the tests of this folder share: the parts of a tiny segmenter, and what exporting it gave."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slime_export.parity import Report
from slime_export.repository import Published
from slime_optimize.predict import Predictor

PARTS = ("background", "body", "wheel", "window", "plate")
Snapshot = dict[str, bytes | None]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A segmenter's folder, the repository it was exported into, and what the export said."""

    kind: str
    folder: Path
    repository: Path
    predictor: Predictor
    published: Published
    report: Report
    lines: list[str]

    @property
    def unet(self) -> Path:
        return self.repository / "car_unet" / "1" / "model.onnx"
