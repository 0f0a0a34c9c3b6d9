"""The training pictures: scenes of the `backbone` split drawn once into a memory-mapped array.

Images and captions only; masks are thrown away as soon as the caption is written.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import trange

from slime_backbone.scene import KINDS, SIZE, scene


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """images (M, S, S, 3) uint8 and as many captions."""

    images: NDArray[np.uint8]
    captions: list[str]


def corpus(folder: Path, count: int) -> Corpus:
    """`count` scenes, the classes taking turns, drawn into `folder` unless they are there already."""
    pixels, text = folder / f"scenes-{count}.npy", folder / f"captions-{count}.json"
    if not text.exists():
        _draw(pixels, text, count)
    return Corpus(images=np.load(pixels, mmap_mode="r"), captions=json.loads(text.read_text()))


def _draw(pixels: Path, text: Path, count: int) -> None:
    pixels.parent.mkdir(parents=True, exist_ok=True)
    images = np.lib.format.open_memmap(pixels, mode="w+", dtype=np.uint8, shape=(count, SIZE, SIZE, 3))
    captions, kinds = [], list(KINDS)
    for i in trange(count, desc="scenes", mininterval=5):
        drawn = scene(kinds[i % len(kinds)], "backbone", i // len(kinds))
        images[i] = drawn.image
        captions.append(drawn.caption)
    images.flush()
    beside = text.with_suffix(".partial")
    beside.write_text(json.dumps(captions))
    os.replace(beside, text)
