"""The training pictures: scenes of the `backbone` split, each in several colourings, drawn once into a memory-mapped
array.

Images and captions only; masks are thrown away as soon as the caption is written.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from tqdm import tqdm

from slime_backbone.scene import KINDS, SIZE, colourings
from slime_optimize.files import write_text

COLOURINGS = 3  # pictures of each drawing, one after the other
CHUNK = 66  # pictures a worker draws at a time, of whole drawings


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """images (M, S, S, 3) uint8 and as many captions."""

    images: NDArray[np.uint8]
    captions: list[str]


def corpus(folder: Path, count: int, workers: int = 0) -> Corpus:
    """Return `count` pictures, the classes taking turns, drawn into `folder` unless they are there already.

    Picture i is colouring i % COLOURINGS of drawing i // COLOURINGS; of a drawing begun, none is left out.

    `workers` processes draw, 0 for one a core; what is drawn does not depend on how many.
    """
    count += -count % COLOURINGS
    pixels, text = folder / f"scenes-{count}.npy", folder / f"captions-{count}.json"
    if not text.exists():
        _draw(pixels, text, count, workers or cores())
    return Corpus(images=np.load(pixels, mmap_mode="r"), captions=json.loads(text.read_text()))


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _draw(pixels: Path, text: Path, count: int, workers: int) -> None:
    pixels.parent.mkdir(parents=True, exist_ok=True)
    open_memmap(pixels, mode="w+", dtype=np.uint8, shape=(count, SIZE, SIZE, 3)).flush()  # type: ignore[no-untyped-call]
    captions: list[str] = []
    with tqdm(total=count, desc="scenes", mininterval=5) as bar:
        for said in _chunks(pixels, count, workers):
            captions += said
            bar.update(len(said))
    write_text(text, json.dumps(captions))


def _chunks(pixels: Path, count: int, workers: int) -> Iterator[list[str]]:
    """Yield the captions of every chunk, in order; the images go straight into the file."""
    starts = range(0, count, CHUNK)
    draw = partial(_draw_chunk, pixels, count)
    if workers == 1:
        yield from map(draw, starts)
        return
    # Forked workers start at once; spawned ones import torch first, only to draw polygons.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    with multiprocessing.get_context(method).Pool(workers) as pool:
        yield from pool.imap(draw, starts)


def _draw_chunk(pixels: Path, count: int, start: int) -> list[str]:
    images = np.load(pixels, mmap_mode="r+")
    captions, kinds = [], list(KINDS)
    for drawing in range(start // COLOURINGS, min(start + CHUNK, count) // COLOURINGS):
        kind, index = kinds[drawing % len(kinds)], drawing // len(kinds)
        for turn, drawn in enumerate(colourings(kind, index, COLOURINGS)):
            images[drawing * COLOURINGS + turn] = drawn.image
            captions.append(drawn.caption)
    images.flush()
    return captions
