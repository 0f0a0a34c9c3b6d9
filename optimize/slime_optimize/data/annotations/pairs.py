"""Pairs of an image file and a file of one whole mask."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from slime_optimize.data.annotations import masks
from slime_optimize.data.annotations.example import Example, check_ids, check_not_empty, check_painted
from slime_optimize.data.annotations.images import fitted, read_picture
from slime_optimize.data.annotations.legend import Colour, Legend, hexadecimal, load_legend
from slime_optimize.errors import InputError


def load_example(image: Path, mask: Path, parts: Sequence[str], legend: Legend | None = None) -> Example:
    """Reads one pair; ImageError or InputError, in one line, when it cannot be used with `parts`."""
    return _load(image, mask, parts, legend)[0]


def load_pairs(
    pairs: Iterable[tuple[Path, Path]], parts: Sequence[str], legend: Legend | None = None
) -> tuple[Example, ...]:
    """Reads pairs that belong together; InputError also for an empty mask and for palettes that disagree."""
    examples: list[Example] = []
    shown: dict[int, tuple[Path, Colour]] = {}
    for image, mask in pairs:
        example, colours = _load(image, mask, parts, legend)
        check_not_empty(example.mask_HW, f"mask {mask}")
        _check_palette(mask, colours, shown)
        examples.append(example)
    return tuple(examples)


def load_training(
    images: Sequence[Path], masks: Sequence[Path], parts: Sequence[str], legend: Path | None = None
) -> list[Example]:
    """The pairs to learn from; InputError also when a part other than the background is in no mask."""
    if len(images) != len(masks):
        raise InputError(
            f"training data: got {len(images)} images and {len(masks)} masks, expected a mask for each image, in order"
        )
    pairs = zip(images, masks, strict=True)
    examples = load_pairs(pairs, parts, load_legend(legend) if legend is not None else None)
    check_painted(examples, parts, f"mask {', '.join(str(mask) for mask in masks)}")
    return list(examples)


def _load(image: Path, mask: Path, parts: Sequence[str], legend: Legend | None) -> tuple[Example, Mapping[int, Colour]]:
    picture = read_picture(image)
    loaded = masks.load(mask, legend, parts)
    mask_HW = fitted(loaded.values_HW, picture, f"mask {mask}")
    check_ids(mask_HW, parts, f"mask {mask}")
    example = Example(name=image.stem, image_HW3=picture.image_HW3, mask_HW=mask_HW, digest=picture.digest)
    return example, loaded.colours


def _check_palette(mask: Path, colours: Mapping[int, Colour], shown: dict[int, tuple[Path, Colour]]) -> None:
    """Editors that make a palette for each picture number the same colour differently: the numbers mean nothing."""
    for index, colour in colours.items():
        other, before = shown.setdefault(index, (mask, colour))
        if before != colour:
            raise InputError(
                f"mask {mask}: its palette shows id {index} as {hexadecimal(colour)}, {other} as "
                f"{hexadecimal(before)}, expected one palette for all; say what the colours mean with --legend"
            )
