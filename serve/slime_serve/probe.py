"""Whether a server really serves: one small generated image through a segmenter.

Triton calls itself ready while the Python process behind a model is dead, so only an answer counts.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from slime_serve.control import Control, UnansweredError
from slime_serve.repository import Served

SIZE = (48, 64)


def ask(control: Control, served: Served, timeout: float) -> None:
    """Return once the segmenter has answered rightly; UnansweredError tells why it has not."""
    shape = control.ask(served, _picture(), timeout)
    if shape != SIZE:
        raise UnansweredError(f"got a mask of shape {shape}, expected {SIZE}; export it again")


def _picture() -> bytes:
    gradient = np.linspace(0, 255, SIZE[0] * SIZE[1] * 3).reshape(*SIZE, 3).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(gradient).save(buffer, "PNG")
    return buffer.getvalue()
