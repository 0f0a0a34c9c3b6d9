"""A small copy of the first training image, kept beside a segmenter, on which exports and servers check it.

DIR/training.png    RGB, of the size that the backbone reads, (S,S,3) uint8; a segmenter works without it
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from slime_image import fit, load
from slime_optimize.files import whole

FILE = "training.png"


def save(folder: Path, image_HW3: npt.NDArray[np.uint8], image_size: int) -> None:
    """Write the copy into `folder`, whole or not at all."""
    fitted_SS3 = fit(image_HW3, image_size).transpose(1, 2, 0)
    pixels = np.clip(np.rint((fitted_SS3 + 1) * 127.5), 0, 255).astype(np.uint8)
    with whole(folder / FILE) as waiting:
        Image.fromarray(pixels).save(waiting, format="PNG")


def find(folder: Path) -> npt.NDArray[np.uint8] | None:
    """Load the copy, None where there is none. Raises ImageError for one that cannot be read."""
    return load(folder / FILE) if (folder / FILE).exists() else None
