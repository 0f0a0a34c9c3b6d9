"""PartScenes in motion: clips of one car, horse or face, with the mask, exact flow and exact occlusion of each frame.

The object moves, turns and scales, occluders pass before it, and the camera may drift. Backdrop, object and every
occluder are rigid bodies, each a group of layers that one matrix per frame places, texture included; the light stays.
Flow and occlusion follow from the matrices alone. A clip is a pure function of (kind, split, index); no split has a
seed in common with one of slime_backbone.scene.

Legend: T frames, S image side in pixels, O = S * OVERSAMPLE, G bodies from the furthest to the nearest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from slime_backbone.raster import OVERSAMPLE, Floats, Layer, coloured, frame, indices, noisy, paint, rotation
from slime_backbone.scene import KINDS, SIZE, backdrop, blob, parts_of

# Clips for testing are spent once a method was changed after they had been measured: those of 6 and 8 are.
SPLITS = {"choosing": 5, "testing": 9}
COUNTS = {"choosing": 8, "testing": 6}
FRAMES = 48
# Pillow moves corners to whole places of its grid, which would make outlines tremble from frame to frame.
_FINER = 4


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A film of one object.

    images: uint8 (T, S, S, 3), RGB. masks: uint8 (T, S, S), indices into `parts`.
    flows: float32 (T-1, S, S, 2), in pixels, x then y: what frame t shows at p lies at p + flow in frame t + 1.
    hidden: bool (T-1, S, S), what of frame t is covered, or outside the image, in frame t + 1.
    """

    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    flows: NDArray[np.float32]
    hidden: NDArray[np.bool_]
    parts: tuple[str, ...]


def clip(kind: str, split: str, index: int, *, frames: int = FRAMES, size: int = SIZE) -> Clip:
    """Return the clip of that name. Another number of frames gives another clip."""
    rng = np.random.default_rng([list(KINDS).index(kind), SPLITS[split], index])
    bodies, poses_GT33 = _bodies(kind, rng, frames)
    layers = [layer for body in bodies for layer in body]
    body_of_L = np.repeat(np.arange(len(bodies)), [len(body) for body in bodies])
    parts_L = np.array([layer.part for layer in layers], np.uint8)
    look, noise = int(rng.integers(2**32)), float(rng.uniform(0.0, 0.035))
    images, masks, seen = [], [], []
    for t in range(frames):
        poses_L33 = poses_GT33[body_of_L, t]
        placed = [
            replace(layer, polygon_V2=_moved(layer.polygon_V2, pose))
            for layer, pose in zip(layers, poses_L33, strict=True)
        ]
        index_OO = indices(placed, size * _FINER)[::_FINER, ::_FINER]
        body_OO = body_of_L[index_OO]
        surface_2OO = _through(np.linalg.inv(poses_GT33[:, t]), body_OO)
        # The same chance for each frame: light and textures are the clip's, noise alone is the frame's.
        image = coloured(placed, index_OO, np.random.default_rng(look), surface_2OO)
        images.append(noisy(image, noise, rng))
        masks.append(parts_L[index_OO[::OVERSAMPLE, ::OVERSAMPLE]])
        seen.append(body_OO[::OVERSAMPLE, ::OVERSAMPLE])
    ways = [_flow(seen[t], seen[t + 1], poses_GT33[:, t], poses_GT33[:, t + 1]) for t in range(frames - 1)]
    return Clip(
        images=np.stack(images),
        masks=np.stack(masks),
        flows=np.array([flow for flow, _ in ways], np.float32).reshape(frames - 1, size, size, 2),
        hidden=np.array([hidden for _, hidden in ways], bool).reshape(frames - 1, size, size),
        parts=parts_of(kind),
    )


def clips(kind: str, split: str) -> Iterator[Clip]:
    """Yield the clips of a split."""
    return (clip(kind, split, index) for index in range(COUNTS[split]))


def warped(labels_SS: NDArray[np.uint8], flow_SS2: Floats) -> NDArray[np.uint8]:
    """Return frame t + 1's labels as frame t sees them, of the nearest pixel; beyond the image, of its edge."""
    height, width = labels_SS.shape
    y, x = np.mgrid[0:height, 0:width]
    rows = np.rint(y + flow_SS2[..., 1]).astype(np.int64).clip(0, height - 1)
    columns = np.rint(x + flow_SS2[..., 0]).astype(np.int64).clip(0, width - 1)
    seen: NDArray[np.uint8] = labels_SS[rows, columns]
    return seen


def _bodies(kind: str, rng: np.random.Generator, frames: int) -> tuple[list[list[Layer]], Floats]:
    """Return the layers of each body in the unit square, and where each is in every frame, (G, T, 3, 3)."""
    colours = KINDS[kind].paints(rng)
    ground, floor = paint(rng), paint(rng)
    squash = 0.3 if kind == "face" else float(rng.uniform(0.55, 1.0))
    bodies = [backdrop(rng, ground, floor), frame(KINDS[kind].layers(rng, colours), rng, squash=squash)]
    clock_T = _clock(rng, frames)
    drift = float(rng.uniform(0.02, 0.06)) * (rng.random() < 0.5)
    poses = [
        _swaying(rng, clock_T, shift=drift, turn=0.0, growth=0.0, scale=1.0),
        _swaying(rng, clock_T, shift=0.07, turn=0.15, growth=0.08, scale=float(rng.uniform(0.85, 1.0))),
    ]
    for _ in range(rng.integers(1, 3)):
        bodies.append([blob(rng, np.zeros(2), rng.uniform(0.06, 0.16))])
        poses.append(_passing(rng, clock_T))
    return bodies, np.stack(poses)


def _clock(rng: np.random.Generator, frames: int) -> Floats:
    """Return the time of each frame, (T,), in frames: in half of the clips everything rests for a while."""
    steps = np.ones(frames)
    if rng.random() < 0.5:
        rest = int(rng.integers(frames // 6, frames // 3 + 1))
        begin = int(rng.integers(1, frames - rest))
        steps[begin : begin + rest] = 0
    return np.cumsum(steps) - 1


def _swaying(
    rng: np.random.Generator, clock_T: Floats, *, shift: float, turn: float, growth: float, scale: float
) -> Floats:
    """Return poses (T, 3, 3) that go to and fro, each by up to twice these: of the side, radians, and a share."""
    amplitudes = np.array([shift, shift, turn, growth]) * rng.uniform(0.5, 1.5, 4)
    periods, phases = rng.uniform(40, 100, 4), rng.uniform(0, 2 * np.pi, 4)
    across, down, angle, grown = amplitudes[:, None] * np.sin(2 * np.pi * clock_T / periods[:, None] + phases[:, None])
    return np.stack(
        [
            _pose(scale * (1 + grown[t]), angle[t], np.array([0.5 + across[t], 0.5 + down[t]]), origin=0.5)
            for t in range(len(clock_T))
        ]
    )


def _passing(rng: np.random.Generator, clock_T: Floats) -> Floats:
    """Return poses (T, 3, 3) of what crosses the image in a line once, turning, from outside to outside."""
    heading, spin = rng.uniform(0, 2 * np.pi), rng.uniform(-0.05, 0.05)
    begin, duration = rng.uniform(-0.2, 0.5) * len(clock_T), rng.uniform(25, 60)
    aside = rotation(heading) @ [0, rng.uniform(-0.25, 0.25)]
    along_T = 0.75 - 1.5 * (clock_T - begin) / duration
    return np.stack(
        [
            _pose(1.0, spin * time, 0.5 + aside + rotation(heading) @ [along, 0], origin=0.0)
            for time, along in zip(clock_T, along_T, strict=True)
        ]
    )


def _pose(scale: float, angle: float, centre: Floats, *, origin: float) -> Floats:
    """Return the matrix (3, 3) that scales and turns about `origin` (both coordinates), then puts that at `centre`."""
    pose = np.eye(3)
    pose[:2, :2] = scale * rotation(angle)
    pose[:2, 2] = centre - pose[:2, :2] @ np.full(2, origin)
    return pose


def _moved(points_V2: Floats, pose_33: Floats) -> Floats:
    return np.asarray(points_V2 @ pose_33[:2, :2].T + pose_33[:2, 2])


def _through(matrices_G33: Floats, body_XX: NDArray[np.int64]) -> Floats:
    """Return where each place of a square grid over the image goes by its own body's matrix, (2, X, X), x then y."""
    y, x = np.mgrid[0 : len(body_XX), 0 : len(body_XX)] / len(body_XX)
    along_XX33 = matrices_G33[body_XX]
    return np.stack([along_XX33[..., i, 0] * x + along_XX33[..., i, 1] * y + along_XX33[..., i, 2] for i in (0, 1)])


def _flow(
    body_SS: NDArray[np.int64], next_SS: NDArray[np.int64], poses_G33: Floats, next_G33: Floats
) -> tuple[Floats, NDArray[np.bool_]]:
    """Return flow (S, S, 2) and what is hidden (S, S), of two frames' bodies and poses."""
    size = len(body_SS)
    there_2SS = _through(next_G33 @ np.linalg.inv(poses_G33), body_SS)
    column, row = np.rint(there_2SS * size).astype(np.int64)
    outside = (np.minimum(row, column) < 0) | (np.maximum(row, column) >= size)
    hidden = outside | (next_SS[row.clip(0, size - 1), column.clip(0, size - 1)] != body_SS)
    y, x = np.mgrid[0:size, 0:size]
    return np.moveaxis(there_2SS * size - np.stack([x, y]), 0, -1), hidden
