"""PartScenes: seeded scenes of one car, horse or face, each with its index mask and caption.

A scene is a pure function of (kind, split, index). Splits never share a seed, so nothing that is
evaluated was seen while the backbone was trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from slime_backbone import car, face, horse
from slime_backbone.raster import Floats, Layer, Paint, ellipse, frame, paint, render, rotation

SIZE = 128  # pixels
KINDS: dict[str, ModuleType] = {"car": car, "horse": horse, "face": face}
SPLITS = {"backbone": 0, "train-1": 1, "train-10": 2, "validation": 3, "test": 4}
COUNTS = {"train-1": 1, "train-10": 10, "validation": 10, "test": 50}
MIN_PART_SHARE = 0.003  # of the pixels, for every part of the one training image


@dataclass(frozen=True, kw_only=True)
class Scene:
    """image (S, S, 3) uint8 RGB, mask (S, S) uint8 of indices into `parts`, and what a caption says of it."""

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    parts: tuple[str, ...]
    caption: str


def parts_of(kind: str) -> tuple[str, ...]:
    """Return the part names of a class, background first."""
    names: tuple[str, ...] = KINDS[kind].PARTS
    return names


def scene(kind: str, split: str, index: int, size: int = SIZE) -> Scene:
    """Return the scene of that name; the one training image is the split's first that shows every part well."""
    if split != "train-1":
        return _draw(kind, (SPLITS[split], index), size)
    attempt = index
    while True:
        candidate = _draw(kind, (SPLITS[split], index, attempt), size)
        shares = np.bincount(candidate.mask.ravel(), minlength=len(candidate.parts)) / candidate.mask.size
        if shares.min() >= MIN_PART_SHARE:
            return candidate
        attempt += 1


def _draw(kind: str, seed: tuple[int, ...], size: int) -> Scene:
    rng = np.random.default_rng([list(KINDS).index(kind), *seed])
    colours: dict[str, Paint] = KINDS[kind].paints(rng)
    ground, floor = paint(rng), paint(rng)
    image, mask = _rendered(kind, colours, ground, floor, rng, size)
    caption = _caption(kind, colours, mask, rng, told=0.88, ground=ground)
    return Scene(image=image, mask=mask, parts=parts_of(kind), caption=caption)


def colourings(kind: str, index: int, count: int, size: int = SIZE) -> list[Scene]:
    """Return scene `index` of the `backbone` split, then the same drawing in other colours, `count` in all.

    Backdrop, light and textures' places stay; captions tell nearly every part, and nothing of the backdrop.
    """
    seed = (list(KINDS).index(kind), SPLITS["backbone"], index)
    rng = np.random.default_rng(seed)
    own: dict[str, Paint] = KINDS[kind].paints(rng)
    ground, floor = paint(rng), paint(rng)
    drawing, scenes = rng.bit_generator.state, []
    for turn in range(count):
        rng.bit_generator.state = drawing
        chance = np.random.default_rng([*seed, turn + 1])
        colours = own if turn == 0 else {name: paint(chance) for name in own}
        image, mask = _rendered(kind, colours, ground, floor, rng, size)
        caption = _caption(kind, colours, mask, chance, told=0.95)
        scenes.append(Scene(image=image, mask=mask, parts=parts_of(kind), caption=caption))
    return scenes


def _rendered(
    kind: str, colours: dict[str, Paint], ground: Paint, floor: Paint, rng: np.random.Generator, size: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    squash = 0.3 if kind == "face" else float(rng.uniform(0.55, 1.0))
    placed = frame(KINDS[kind].layers(rng, colours), rng, squash=squash)
    return render([*backdrop(rng, ground, floor), *placed, *_occluders(rng)], rng, size)


def backdrop(rng: np.random.Generator, ground: Paint, floor: Paint) -> list[Layer]:
    """Return a wall, perhaps a floor, and clutter behind the object; the first layer lies under everything."""
    square = np.array([(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)])
    layers = [Layer(polygon_V2=square, part=0, material=ground.material)]
    if rng.random() < 0.5:
        left, right = rng.uniform(0.45, 0.85) + rng.normal(0, 0.04, 2)
        below = np.array([(0, left), (1, right), (1, 1), (0, 1)])
        layers.append(Layer(polygon_V2=below, part=0, material=floor.material))
    return [*layers, *(blob(rng, rng.random(2), rng.uniform(0.05, 0.25)) for _ in range(rng.integers(0, 5)))]


def _occluders(rng: np.random.Generator) -> list[Layer]:
    """Return, in a third of the scenes, a blob that covers a little of the object."""
    if rng.random() > 0.33:
        return []
    side = rotation(float(rng.uniform(0, 2 * np.pi))) @ [rng.uniform(0.35, 0.55), 0]
    return [blob(rng, side + 0.5, rng.uniform(0.06, 0.16))]


def blob(rng: np.random.Generator, centre: Floats, radius: float) -> Layer:
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(4, 8)))
    corners = np.stack([np.cos(angles), np.sin(angles)], 1) * radius * rng.uniform(0.6, 1.2, (len(angles), 1))
    round_ = rng.random() < 0.5
    shape = ellipse(0, 0, radius, radius * rng.uniform(0.3, 1), rng.uniform(0, np.pi)) if round_ else corners
    return Layer(polygon_V2=shape + centre, part=0, material=paint(rng).material)


def _caption(
    kind: str,
    colours: dict[str, Paint],
    mask: NDArray[np.uint8],
    rng: np.random.Generator,
    *,
    told: float,
    ground: Paint | None = None,
) -> str:
    """Such as "a car , red body , black wheel , no plate , on green": bound colours, shuffled, each `told` with that
    chance."""
    parts = parts_of(kind)
    seen = {parts[i] for i in np.unique(mask)}
    said = [f"{p.word} {name}" if name in seen else f"no {name}" for name, p in colours.items() if rng.random() < told]
    order = rng.permutation(len(said))
    where = [f"on {ground.word}"] if ground and rng.random() < 0.7 else []
    return " , ".join([f"a {kind}", *(said[i] for i in order), *where])
