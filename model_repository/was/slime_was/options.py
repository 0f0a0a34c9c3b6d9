"""What may differ from plain WAS between two segmenters, as one value that is sent along with their maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class Postprocess:
    """How maps become scores; by default by eq. 6 and nothing else.

    A served UNet puts it out as a constant float32 vector beside its maps (`vector`), so that one `was` model serves
    all segmenters.
    """

    threshold: float = 0.0  # a part whose cross map stays under it everywhere scores 0
    drop_background: bool = False  # the threshold holds for part 0 too, as in the published code
    # The first part that is kept counts only where its cross map is above its own mean, as in the published code.
    suppress_first_part: bool = False
    rescale: bool = False  # each WAS map onto its cross map's [min, max], as in the published code
    side: int = 512  # S: pixels of the square that an image is fitted into; rescaling and patches happen there
    patches: int = 1  # crops a side, evenly spread; 1 is the whole image
    patch_side: float = 1.0  # of a crop, as a share of S
    # Joint bilateral upsampling: standard deviation of the colour difference (of 0..1 channels); 0 leaves it out.
    edge_tolerance: float = 0.0

    def __post_init__(self) -> None:
        _check(0 <= self.threshold <= 1, "threshold", self.threshold, "0 to 1")
        _check(self.side >= 1, "side", self.side, "1 or more pixels")
        _check(1 <= self.patches <= 8, "patches", self.patches, "1 to 8 a side")
        covered = self.patches * self.patch_side >= 1 - 1e-6
        _check(0 < self.patch_side <= 1 and covered, "patch_side", self.patch_side, "a share that covers the image")
        _check(self.edge_tolerance >= 0, "edge_tolerance", self.edge_tolerance, "0 or more")

    @property
    def crops(self) -> tuple[tuple[int, int], ...]:
        """Return (top, left) of every crop of the S x S image, row by row."""
        room = self.side - self.crop_side
        starts = [0] if self.patches == 1 else [round(room * i / (self.patches - 1)) for i in range(self.patches)]
        return tuple((top, left) for top in starts for left in starts)

    @property
    def crop_side(self) -> int:
        """Return the pixels of a crop's side."""
        return max(1, round(self.patch_side * self.side))

    def vector(self, name: str = "") -> npt.NDArray[np.float32]:
        """Return the fields in order, float32 (LENGTH,); and behind them a number for each letter of `name`.

        `name`: of the segmenter, ASCII, so that the `was` model can count by segmenter.
        """
        return np.array([*astuple(self), *name.encode("ascii")], np.float32)

    @classmethod
    def from_vector(cls, vector: npt.NDArray[np.float32]) -> Postprocess:
        """Return what `vector` was made of. Raises ValueError for fewer numbers or values out of range."""
        if vector.ndim != 1 or len(vector) < LENGTH:
            raise ValueError(
                f"postprocess: got shape {vector.shape}, expected ({LENGTH},) or more; export the segmenter again"
            )
        values = zip(fields(cls), vector[:LENGTH].tolist(), strict=True)
        return cls(**{each.name: _KINDS[str(each.type)](value) for each, value in values})


# Background included: a part is one of the text encoder's 77 tokens, and the first is the background.
MAX_PARTS = 77
# Six digits are more than anyone writes, and undo what float32 did to 0.2.
_KINDS: dict[str, Callable[[float], Any]] = {"bool": bool, "int": round, "float": lambda value: round(value, 6)}
LENGTH = len(fields(Postprocess))


def name_in(vector: npt.NDArray[np.float32]) -> str:
    """Return the segmenter's name that a vector carries, "" where it was exported before names were in it."""
    return "".join(chr(int(letter)) for letter in vector[LENGTH:])


def _check(holds: bool, name: str, got: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"postprocess: got {name} {got}, expected {expected}")
