"""The project's files: written whole or not at all, JSON read back, and pictures of part values.

A mask on disk is a PNG of one channel whose pixels are part values, with a palette of the parts' colours.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from slime_client.images import saved
from slime_studio.errors import StudioError, disk_error

Mask = npt.NDArray[np.uint8]
VOID = 255  # the value of pixels that count nowhere


def write(path: Path, data: bytes) -> None:
    """Write `data` under `path`, replacing what is there only once all of it is written. Raises StudioError."""
    waiting = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        waiting.write_bytes(data)
        os.replace(waiting, path)
    except OSError as error:
        waiting.unlink(missing_ok=True)
        raise disk_error(error, path.name) from error


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, whole or not at all."""
    write(path, (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; nothing where there is no file. Raises StudioError for a damaged one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise StudioError(f"{path}: cannot be read ({error}); put it right, or move it away", 500) from error
    if not isinstance(found, dict):
        raise StudioError(f"{path}: holds no JSON object; put it right, or move it away", 500)
    return found


def mask_png(mask_HW: Mask, colours: Mapping[int, str]) -> bytes:
    """Return a mask (H,W) of part values as a palette PNG; `colours`: "#rrggbb" by value, white for the others."""
    picture = Image.fromarray(mask_HW).convert("L")
    flat = bytearray(b"\xff" * 768)
    for value, colour in colours.items():
        flat[3 * value : 3 * value + 3] = bytes.fromhex(colour[1:])
    picture.putpalette(bytes(flat))
    return saved(picture, "PNG", compress_level=1)


def read_mask(path: Path) -> Mask | None:
    """Return the values (H,W) of a mask that `mask_png` made; None where there is no file. Raises StudioError."""
    try:
        with Image.open(path) as picture:
            return np.array(picture)
    except FileNotFoundError:
        return None
    except (OSError, SyntaxError, ValueError) as error:
        raise StudioError(f"mask {path}: cannot be read ({error}); move it away to paint it anew", 500) from error
