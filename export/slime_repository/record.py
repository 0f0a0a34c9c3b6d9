"""What is kept of each version of a segmenter, in the folder that Triton wants for it anyway.

    NAME/3/ensemble.pbtxt   the configuration that made it live
    NAME/3/image.png        what it is asked before any client sees it: the image it was learned from, if that is known
    NAME/3/mask.png         what it has to answer: PyTorch's mask of that image, part indices
    NAME/3/record.json      {"published": UTC, "agreement": 0..1, "training_image": bool, "content_of": version or null}

So neither a rollback nor an upgrade needs PyTorch or the backbone. A shared segmenter has the last three files, in
segmenters/checks/NAME/3.
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

from slime_repository.errors import RepositoryError
from slime_repository.layout import RECORDED_CONFIG

IMAGE_FILE, MASK_FILE, FACTS_FILE = "image.png", "mask.png", "record.json"
Mask = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Check:
    """An image (encoded), its mask (H, W), and the share of pixels, 0 to 1, that an answer must have in common."""

    image: bytes
    mask_HW: Mask
    agreement: float
    training_image: bool

    def complaint(self, got_HW: Mask | None) -> str | None:
        """Return what is wrong with an answer, as words that follow the name of who gave it; None where it agrees."""
        same = (
            float((got_HW == self.mask_HW).mean()) if got_HW is not None and got_HW.shape == self.mask_HW.shape else 0
        )
        if same >= self.agreement:
            return None
        what = "the training image" if self.training_image else "a generated image"
        return (
            f"answers {what} with a mask of which {100 * same:.2f} % is as expected, expected at least "
            f"{100 * self.agreement:g} %"
        )

    def write(self, folder: Path, content_of: int | None = None) -> None:
        """Write the check into `folder`, which is made."""
        folder.mkdir(parents=True)
        facts = {
            "published": now_in_utc(),
            "agreement": self.agreement,
            "training_image": self.training_image,
            "content_of": content_of,
        }
        (folder / FACTS_FILE).write_text(json.dumps(facts) + "\n", encoding="utf-8")
        (folder / IMAGE_FILE).write_bytes(self.image)
        (folder / MASK_FILE).write_bytes(png(self.mask_HW))


@dataclass(frozen=True, kw_only=True)
class Record:
    """One version: its ensemble's configuration and its check; `content_of`: the version a rollback took it from."""

    config: str
    check: Check
    content_of: int | None = None

    def write(self, folder: Path) -> None:
        """Write the record into `folder`, which is made."""
        self.check.write(folder, self.content_of)
        (folder / RECORDED_CONFIG).write_text(self.config, encoding="utf-8")


def facts(folder: Path) -> dict[str, Any]:
    """Return record.json's content; nothing for a version of before there were records."""
    try:
        found: dict[str, Any] = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def read_check(folder: Path) -> Check:
    """Return what `Check.write` wrote. Raises RepositoryError for anything else."""
    try:
        told = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
        return Check(
            image=(folder / IMAGE_FILE).read_bytes(),
            mask_HW=np.asarray(Image.open(folder / MASK_FILE)),
            agreement=float(told["agreement"]),
            training_image=bool(told["training_image"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, error) from error


def read(folder: Path) -> Record:
    """Return what `Record.write` wrote. Raises RepositoryError for anything else."""
    check = read_check(folder)
    try:
        config = (folder / RECORDED_CONFIG).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise _damaged(folder, error) from error
    return Record(config=config, check=check, content_of=facts(folder).get("content_of"))


def _damaged(folder: Path, error: Exception) -> RepositoryError:
    return RepositoryError(f"record {folder}: damaged or missing ({error}); publish the segmenter again")


def png(image: npt.NDArray[np.uint8]) -> bytes:
    """Return (H, W) or (H, W, 3) as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def now_in_utc() -> str:
    """Return the time, to the second, as ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
