"""Named colours, and materials drawn from them: what captions can speak of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from slime_backbone.raster import Material

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.82, 0.12, 0.12),
    "orange": (0.95, 0.52, 0.10),
    "yellow": (0.93, 0.86, 0.20),
    "green": (0.16, 0.60, 0.22),
    "cyan": (0.25, 0.80, 0.82),
    "blue": (0.14, 0.27, 0.80),
    "purple": (0.50, 0.20, 0.65),
    "pink": (0.95, 0.58, 0.72),
    "brown": (0.45, 0.27, 0.14),
    "white": (0.94, 0.94, 0.93),
    "gray": (0.52, 0.52, 0.53),
    "black": (0.09, 0.09, 0.10),
}
SKIN: dict[str, tuple[float, float, float]] = {
    "pale": (0.93, 0.78, 0.68),
    "tan": (0.80, 0.60, 0.45),
    "dark": (0.40, 0.26, 0.19),
}


@dataclass(frozen=True, kw_only=True)
class Paint:
    """A material and the word a caption uses for its colour."""

    word: str
    material: Material


def paint(rng: np.random.Generator, *words: str) -> Paint:
    """One of `words` (any named colour when none is given), jittered, with a random texture."""
    word = str(rng.choice(list(words) or list(COLOURS)))
    base = np.array((COLOURS | SKIN)[word]) + rng.normal(0, 0.035, 3)
    r, g, b = np.clip(base, 0.02, 0.98)
    kind = int(rng.choice(4, p=[0.5, 0.15, 0.1, 0.25]))
    material = Material(
        colour=(float(r), float(g), float(b)),
        kind=kind,
        amplitude=float(rng.uniform(0.02, 0.07)) if kind else 0.0,
        frequency=float(rng.uniform(4, 16)),
        angle=float(rng.uniform(0, np.pi)),
    )
    return Paint(word=word, material=material)
