"""Measuring a segmenter on annotated images: pixel counts for each, and a picture of best, median and worst.

Shape suffixes: H, W image sides, P parts; confusions are (P,P) by [truth, prediction].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from slime_image import fit_mask
from slime_optimize.data.annotations import PARTS_FILE, Example, dataset, load_example, read
from slime_optimize.errors import InputError
from slime_optimize.method.prediction import Predictor
from slime_optimize.metrics import Ints, confusion, image_score
from slime_optimize.picture import colour_mask, sheet

_SHOWN = 3  # images of each kind, best, median and worst, in a picture
_CELL = 256


@dataclass(frozen=True, kw_only=True)
class Data:
    """Part names, and a reader for each image, so that a data set need not be in memory.

    ignored: for images that are read when they are needed, the number of void pixels, by the image's index, once read.
    """

    parts: tuple[str, ...]
    images: tuple[Callable[[], Example], ...]
    ignored: Mapping[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)


def read_data(source: Path, parts: tuple[str, ...], *, legend: Path | None = None, squash: int | None = None) -> Data:
    """Return the images of `source`, with squash as squares of that side. Raises InputError, in one line."""
    if squash is not None and squash < 1:
        raise InputError(f"--squash: got {squash}, expected the side of a square in pixels, such as 512")
    # A folder as optimize/prepare.py writes it may be too large for the memory, and is read image by image.
    prepared = (source / PARTS_FILE).is_file() and all(any((source / n).glob("*.png")) for n in ("images", "masks"))
    readers: tuple[Callable[[], Example], ...]
    ignored: dict[int, int] = {}
    if prepared and legend is None and (named := dataset(source))[0] == parts:
        names, pairs = named
        readers = tuple(partial(_counted, index, ignored, *pair, names) for index, pair in enumerate(pairs))
    else:
        found = read(source, parts, legend=legend)
        names, readers = found.parts, tuple(partial(_same, each) for each in found.examples)
    if squash is not None:
        readers = tuple(partial(_squashed, each, squash) for each in readers)
    return Data(parts=names, images=readers, ignored=ignored)


def _counted(index: int, ignored: dict[int, int], image: Path, mask: Path, parts: Sequence[str]) -> Example:
    """Load an example, and note how many of its pixels are void."""
    example = load_example(image, mask, parts)
    if example.ignored:
        ignored[index] = example.ignored
    return example


def _same(example: Example) -> Example:
    return example


def _squashed(read: Callable[[], Example], side: int) -> Example:
    """Return image and mask squashed to a square, as the paper measures."""
    example = read()
    image = Image.fromarray(example.image_HW3).resize((side, side), Image.Resampling.BILINEAR)
    return Example(name=example.name, image_HW3=np.array(image), mask_HW=fit_mask(example.mask_HW, side))


class Segments(Protocol):
    """What can be measured: a Predictor, or the models exported from it."""

    @property
    def batch_size(self) -> int:
        """Number of images that it takes together."""

    def masks(
        self, images_HW3: Sequence[npt.NDArray[np.uint8]], *, use_was: bool = True
    ) -> list[npt.NDArray[np.uint8]]:
        """Return the masks of RGB uint8 images of any sizes: part indices, uint8 (H,W) each."""


def confusions(
    predictor: Segments, data: Data, *, use_was: bool = True, done: Callable[[int], object] = lambda images: None
) -> list[Ints]:
    """Return the pixel counts of each image, at its own size; `done` is called with the size of every batch."""
    counts: list[Ints] = []
    size = predictor.batch_size
    for start in range(0, len(data), size):
        examples = [read() for read in data.images[start : start + size]]
        masks = predictor.masks([example.image_HW3 for example in examples], use_was=use_was)
        pairs = zip(examples, masks, strict=True)
        counts += [confusion(example.mask_HW, mask, len(data.parts)) for example, mask in pairs]
        done(len(examples))
    return counts


def picture(predictor: Predictor, data: Data, counts: Sequence[Ints], *, use_was: bool = True) -> Image.Image:
    """Draw image, truth and prediction of the best, median and worst images, each under its name and IoU."""
    colours = predictor.segmenter.colours
    rows, captions = [], []
    for label, index in _telling([image_score(each) for each in counts]):
        example = data.images[index]()
        mask = predictor.mask(example.image_HW3, use_was=use_was)
        rows.append((example.image_HW3, colour_mask(example.mask_HW, colours), colour_mask(mask, colours)))
        captions.append(f"{label}: {example.name}, mean IoU {image_score(counts[index]):.1f} %")
    return sheet(rows, ("image", "truth", "prediction"), data.parts, colours, _CELL, captions)


def _telling(scores: Sequence[float]) -> list[tuple[str, int]]:
    """Return labels and indices of the images to show; none twice."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    some = max(1, min(_SHOWN, len(order) // 3))
    middle = (len(order) - some) // 2
    ranges = {"best": order[:some], "median": order[middle : middle + some], "worst": order[-some:]}
    labels = {index: label for label, indices in reversed(ranges.items()) for index in indices}
    return [(labels[index], index) for index in order if index in labels]
