"""A segmenter measured on annotated images: pixel counts of each, and a picture of how well it goes and how badly.

Shape suffixes: H, W image sides, P parts; confusions are (P,P) by [truth, prediction].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from slime_image import fit_mask
from slime_optimize.data.annotations import Example, dataset, load_example, read
from slime_optimize.errors import InputError
from slime_optimize.method.prediction import Predictor
from slime_optimize.metrics import Ints, confusion, image_score
from slime_optimize.picture import colour_mask, sheet

_SHOWN = 3  # images of each kind, best, median and worst, in a picture
_CELL = 256


@dataclass(frozen=True, kw_only=True)
class Data:
    """Part names, and for each image what reads it: a data set need not lie in memory."""

    parts: tuple[str, ...]
    images: tuple[Callable[[], Example], ...]

    def __len__(self) -> int:
        return len(self.images)


def read_data(source: Path, parts: tuple[str, ...], *, legend: Path | None = None, squash: int | None = None) -> Data:
    """What `source` holds of `parts`, squashed to a square of side `squash`. Raises InputError, in one line."""
    if squash is not None and squash < 1:
        raise InputError(f"--squash: got {squash}, expected the side of a square in pixels, such as 512")
    found = _lazily(source) if legend is None and _is_ours(source) else _at_once(source, parts, legend)
    if squash is None:
        return found
    return Data(parts=found.parts, images=tuple(partial(_squashed, each, squash) for each in found.images))


def _is_ours(source: Path) -> bool:
    """Whether it is a folder as optimize/prepare.py writes it, which may be too large for the memory."""
    return (source / "parts.json").is_file() and all(any((source / n).glob("*.png")) for n in ("images", "masks"))


def _lazily(source: Path) -> Data:
    named, pairs = dataset(source)
    return Data(parts=named, images=tuple(partial(load_example, image, mask, named) for image, mask in pairs))


def _at_once(source: Path, parts: tuple[str, ...], legend: Path | None) -> Data:
    found = read(source, parts, legend=legend)
    return Data(parts=found.parts, images=tuple(partial(_same, each) for each in found.examples))


def _same(example: Example) -> Example:
    return example


def _squashed(read: Callable[[], Example], side: int) -> Example:
    """Image and mask as a square, whatever their shape: how the paper measures."""
    example = read()
    image = Image.fromarray(example.image_HW3).resize((side, side), Image.Resampling.BILINEAR)
    return Example(name=example.name, image_HW3=np.array(image), mask_HW=fit_mask(example.mask_HW, side))


class Segments(Protocol):
    """What can be measured: a Predictor, or the models exported from it."""

    @property
    def batch_size(self) -> int:
        """How many images it takes together."""

    def masks(
        self, images_HW3: Sequence[npt.NDArray[np.uint8]], *, use_was: bool = True
    ) -> list[npt.NDArray[np.uint8]]:
        """RGB uint8 images of any sizes -> uint8 (H,W) of part indices each."""


def confusions(
    predictor: Segments, data: Data, *, use_was: bool = True, done: Callable[[int], object] = lambda images: None
) -> list[Ints]:
    """Pixel counts of each image, at its own size; `done` hears of every batch."""
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
    """Image | truth | prediction of the best, the median and the worst images, each under its name and IoU."""
    colours = predictor.segmenter.colours
    rows, captions = [], []
    for label, index in _telling([image_score(each) for each in counts]):
        example = data.images[index]()
        mask = predictor.mask(example.image_HW3, use_was=use_was)
        rows.append((example.image_HW3, colour_mask(example.mask_HW, colours), colour_mask(mask, colours)))
        captions.append(f"{label}: {example.name}, mean IoU {image_score(counts[index]):.1f} %")
    return sheet(rows, ("image", "truth", "prediction"), data.parts, colours, _CELL, captions)


def _telling(scores: Sequence[float]) -> list[tuple[str, int]]:
    """Labels and indices of the images to show; none twice."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    some = max(1, min(_SHOWN, len(order) // 3))
    middle = (len(order) - some) // 2
    ranges = {"best": order[:some], "median": order[middle : middle + some], "worst": order[-some:]}
    labels = {index: label for label, indices in reversed(ranges.items()) for index in indices}
    return [(labels[index], index) for index in order if index in labels]
