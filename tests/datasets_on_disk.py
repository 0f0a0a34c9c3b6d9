"""Tiny data sets in the file formats of the real ones, for tests of what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.io import savemat

Box = tuple[int, int, int, int]  # top, bottom, left, right
Bits = npt.NDArray[np.uint8]
_PART = [("part_name", object), ("mask", object)]
_OBJECT = [("class", object), ("class_ind", object), ("bbox", object), ("mask", object), ("parts", object)]


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """An object of PASCAL-Part: its class, the box its mask fills, and those of its parts by name."""

    kind: str
    box: Box
    parts: Sequence[tuple[str, Box]] = ()


def filled(box: Box, shape: tuple[int, int]) -> Bits:
    mask = np.zeros(shape, np.uint8)
    mask[box[0] : box[1], box[2] : box[3]] = 1
    return mask


def noise(shape: tuple[int, int], seed: int = 0) -> Bits:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def write_annotation(
    folder: Path, name: str, objects: Sequence[Annotated], shape: tuple[int, int] = (200, 300)
) -> None:
    """Annotations_Part/NAME.mat as MATLAB wrote it (structs in structs, no parts as []), and JPEGImages/NAME.jpg."""
    rows = np.empty((1, len(objects)), dtype=_OBJECT)
    for index, each in enumerate(objects):
        parts = np.empty((1, len(each.parts)), dtype=_PART)
        for place, (part, box) in enumerate(each.parts):
            parts[0, place] = (part, filled(box, shape))
        top, bottom, left, right = each.box
        box_1based = np.array([[left + 1, top + 1, right, bottom]], np.float64)
        rows[0, index] = (
            each.kind,
            7.0,
            box_1based,
            filled(each.box, shape),
            parts if each.parts else np.zeros((0, 0)),
        )
    anno = np.empty((1, 1), dtype=[("imname", object), ("objects", object)])
    anno[0, 0] = (name, rows)
    annotations, images = folder / "trainval" / "Annotations_Part", folder / "VOCdevkit" / "VOC2010" / "JPEGImages"
    for path in (annotations, images):
        path.mkdir(parents=True, exist_ok=True)
    savemat(annotations / f"{name}.mat", {"anno": anno}, do_compression=True)
    Image.fromarray(noise(shape)).save(images / f"{name}.jpg", quality=95)


def write_voc_split(folder: Path, name: str, lines: Sequence[str]) -> None:
    lists = folder / "VOCdevkit" / "VOC2010" / "ImageSets" / "Main"
    lists.mkdir(parents=True, exist_ok=True)
    (lists / f"{name}.txt").write_text("\n".join(lines) + "\n")


def write_face(folder: Path, number: int, layers: Sequence[tuple[str, Box]], *, mode: str = "L") -> None:
    """CelebA-HQ-img/N.jpg of 64 pixels, and masks of 32, a file for each part."""
    images, masks = folder / "CelebA-HQ-img", folder / "CelebAMask-HQ-mask-anno" / str(number // 2000)
    for path in (images, masks):
        path.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise((64, 64), number)).save(images / f"{number}.jpg", quality=95)
    for name, box in layers:
        Image.fromarray(filled(box, (32, 32)) * np.uint8(255)).convert(mode).save(masks / f"{number:05}_{name}.png")


def write_mapping(folder: Path, rows: Sequence[tuple[int, int]]) -> None:
    """Numbers in CelebA-HQ and of CelebA's files, which count from 1."""
    lines = ["idx     orig_idx    orig_file", *(f"{n:<8}{origin - 1:<12}{origin:06}.jpg" for n, origin in rows)]
    (folder / "CelebA-HQ-to-CelebA-mapping.txt").write_text("\n".join(lines) + "\n")
