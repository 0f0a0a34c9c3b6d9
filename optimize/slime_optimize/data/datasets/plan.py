"""A data set to prepare: part names, and a reader for each file; and writing it as images/, masks/ and parts.json.

The folder also gets prepared.json, which says how it was made. It appears when it is complete; until then everything
lies beside it under another name.

Shape suffixes: H, W image sides.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from slime_optimize.data.annotations import Example, check_parts
from slime_optimize.errors import InputError

PARTS_FILE = "parts.json"
ABOUT_FILE = "prepared.json"


@dataclass(frozen=True, kw_only=True)
class Read:
    """The examples of one file, none to several, and how many were left out for which reason."""

    examples: tuple[Example, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to write. Each of `items` reads one file when called; `about`, plain JSON, has the rules they follow."""

    parts: tuple[str, ...]
    items: tuple[Callable[[], Read], ...]
    about: Mapping[str, Any]


def chosen_parts(asked: Sequence[str] | None, known: Sequence[str], subject: str) -> tuple[str, ...]:
    """Return the parts that were asked for, in that order and background first, or all `known` ones."""
    if asked is None:
        return tuple(known)
    parts = check_parts(asked)
    unknown = [name for name in parts if name not in known]
    if unknown or parts[0] != known[0]:
        raise InputError(
            f"--parts: got {' '.join(parts)}, expected {known[0]} first and then some of the parts of {subject}: "
            f"{' '.join(known[1:])}"
        )
    return parts


def painted(
    layers: Sequence[tuple[str, npt.NDArray[np.bool_]]], parts: Sequence[str], shape: tuple[int, ...]
) -> npt.NDArray[np.uint8]:
    """Return a mask (H,W) uint8 of layers (part, (H,W) bool), the last on top; parts not in `parts` are background."""
    mask_HW = np.zeros(shape, np.uint8)
    for name, layer_HW in layers:
        mask_HW[layer_HW] = parts.index(name) if name in parts else 0
    return mask_HW


def found_below(source: Path, name: str, levels: int = 3) -> Path | None:
    """Return the folder or file of that name in `source` or up to `levels` below it: the first by name, or None."""
    for level in range(levels + 1):
        below = sorted(source.glob("/".join(["*"] * level + [name])))
        if below:
            return below[0]
    return None


def listed(path: Path) -> list[str]:
    """Return the first word of each line, except lines of VOC's lists that end in -1: the class is absent there."""
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"split {path}: cannot be read as a list of names; expected a name on each line") from error
    return [words[0] for words in lines if words and words[1:2] != ["-1"]]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """How many images were written, and how many were left out for which reason."""

    images: int
    left_out: dict[str, int] = field(default_factory=dict)


def prepare(plan: Plan, out: Path, *, progress: bool = True) -> Prepared:
    """Read and write everything. Raises InputError when `out` exists, or nothing is left of the source."""
    if any(out.iterdir()) if out.is_dir() else out.exists():
        raise InputError(f"--out {out}: is there already, expected a new folder; choose another, or remove it")
    images, left_out = 0, Counter[str]()
    with _appearing(out) as folder:
        for item in tqdm(plan.items, desc="preparing", unit="file", disable=not progress):
            read = item()
            for example in read.examples:
                _write(example, folder)
            images += len(read.examples)
            left_out.update(read.left_out)
        if not images:
            reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "no file to read"
            raise InputError(f"data: nothing is left to write ({reasons}); expected one image or more, check the split")
        done = Prepared(images=images, left_out=dict(left_out))
        _write_json(folder / ABOUT_FILE, {**plan.about, "images": done.images, "left_out": done.left_out})
        _write_json(folder / PARTS_FILE, list(plan.parts))
    return done


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
