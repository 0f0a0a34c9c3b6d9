"""What is kept of each version of a segmenter, in the folder that Triton wants for it anyway.

    NAME/3/ensemble.pbtxt   the configuration that made it live
    NAME/3/image.png        what it is asked before any client sees it: the image it was learned from, if that is known
    NAME/3/mask.png         what it has to answer: PyTorch's mask of that image, part indices
    NAME/3/record.json      {"published": UTC, "agreement": 0..1, "training_image": bool, "content_of": version or null}

So a rollback needs neither PyTorch nor the backbone.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from slime_export.errors import ExportError, ServerError
from slime_export.publish import layout

IMAGE_FILE, MASK_FILE, FACTS_FILE = "image.png", "mask.png", "record.json"
Mask = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Check:
    """An image (encoded), its mask (H, W), and the share of pixels, 0 to 1, that an answer must have in common."""

    image: bytes
    mask_HW: Mask
    agreement: float
    training_image: bool

    def require(self, got_HW: Mask | None, whose: str) -> None:
        """Raises ServerError, about `whose` answer it was, unless `got_HW` agrees."""
        same = (
            float((got_HW == self.mask_HW).mean()) if got_HW is not None and got_HW.shape == self.mask_HW.shape else 0
        )
        if not same >= self.agreement:
            what = "the training image" if self.training_image else "a generated image"
            raise ServerError(
                f"{whose} answers {what} with a mask of which {100 * same:.2f} % is as expected, expected at least "
                f"{100 * self.agreement:g} %; the version before serves on"
            )


@dataclass(frozen=True, kw_only=True)
class Record:
    """One version: its ensemble's configuration and its check; `content_of`: the version a rollback took it from."""

    config: str
    check: Check
    content_of: int | None = None

    def write(self, folder: Path) -> None:
        """Into `folder`, which is made."""
        folder.mkdir(parents=True)
        facts = {
            "published": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "agreement": self.check.agreement,
            "training_image": self.check.training_image,
            "content_of": self.content_of,
        }
        (folder / FACTS_FILE).write_text(json.dumps(facts) + "\n", encoding="utf-8")
        (folder / layout.RECORDED_CONFIG).write_text(self.config, encoding="utf-8")
        (folder / IMAGE_FILE).write_bytes(self.check.image)
        (folder / MASK_FILE).write_bytes(png(self.check.mask_HW))


def facts(folder: Path) -> dict[str, Any]:
    """record.json's content; nothing for a version of before there were records."""
    try:
        found: dict[str, Any] = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def read(folder: Path) -> Record:
    """What `write` wrote. Raises ExportError for anything else."""
    try:
        facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
        check = Check(
            image=(folder / IMAGE_FILE).read_bytes(),
            mask_HW=np.asarray(Image.open(folder / MASK_FILE)),
            agreement=float(facts["agreement"]),
            training_image=bool(facts["training_image"]),
        )
        config = (folder / layout.RECORDED_CONFIG).read_text(encoding="utf-8")
        return Record(config=config, check=check, content_of=facts["content_of"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"record {folder}: damaged or missing ({error}); publish the segmenter again") from error


def png(image: npt.NDArray[np.uint8]) -> bytes:
    """(H, W) or (H, W, 3) as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()
