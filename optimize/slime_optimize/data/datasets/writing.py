"""A plan carried out: images/NAME.png, masks/NAME.png, parts.json, and prepared.json, which says how they came to be.

The folder appears when it is whole; until then everything lies beside it under another name.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from slime_optimize.data.annotations import Example
from slime_optimize.data.datasets.plan import Plan
from slime_optimize.errors import InputError

PARTS_FILE = "parts.json"
ABOUT_FILE = "prepared.json"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """How many images were written, and how many were not for which reason."""

    images: int
    left_out: dict[str, int] = field(default_factory=dict)


def prepare(plan: Plan, out: Path, *, progress: bool = True) -> Prepared:
    """Reads and writes everything. InputError when `out` is taken, or nothing is left of the source."""
    _check_free(out)
    images, left_out = 0, Counter[str]()
    with _appearing(out) as folder:
        for item in tqdm(plan.items, desc="preparing", unit="file", disable=not progress):
            read = item()
            for example in read.examples:
                _write(example, folder)
            images += len(read.examples)
            left_out.update(read.left_out)
        if not images:
            told = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "no file to read"
            raise InputError(f"data: nothing is left to write ({told}); expected one image or more, check the split")
        done = Prepared(images=images, left_out=dict(left_out))
        _write_json(folder / ABOUT_FILE, {**plan.about, "images": done.images, "left_out": done.left_out})
        _write_json(folder / PARTS_FILE, list(plan.parts))
    return done


def _check_free(out: Path) -> None:
    taken = any(out.iterdir()) if out.is_dir() else out.exists()
    if taken:
        raise InputError(f"--out {out}: is there already, expected a new folder; choose another, or remove it")


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    out.parent.mkdir(parents=True, exist_ok=True)
    waiting = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        for name in ("images", "masks"):
            (waiting / name).mkdir(parents=True)
        yield waiting
        os.replace(waiting, out)
    finally:
        shutil.rmtree(waiting, ignore_errors=True)


def _write(example: Example, folder: Path) -> None:
    name = f"{example.name}.png"
    if (folder / "images" / name).exists():
        raise InputError(f"data: two images are called {example.name}, expected each name once; list each once")
    Image.fromarray(example.image_HW3).save(folder / "images" / name)
    Image.fromarray(example.mask_HW).save(folder / "masks" / name)


def _write_json(path: Path, values: object) -> None:
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
