"""A face from the front: head, hair, features and shoulders, turned and tilted a little."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from slime_backbone.raster import SKIN, Floats, Layer, Material, Paint, ellipse, paint, rotation

PARTS = ("background", "face", "cloth", "eyebrow", "ear", "eye", "hair", "mouth", "neck", "nose")
FACE, CLOTH, EYEBROW, EAR, EYE, HAIR, MOUTH, NECK, NOSE = range(1, 10)


class _Add(Protocol):
    """Puts shapes of one part and material on top of what is there."""

    def __call__(self, part: int, what: Material, *shapes: Floats) -> None: ...


def paints(rng: np.random.Generator) -> dict[str, Paint]:
    """Return a paint for each part: half of the faces have one skin for face, ear, neck, nose, others many colours."""
    free = ("cloth", "eye", "hair")
    if rng.random() < 0.5:
        return {name: paint(rng) for name in PARTS[1:]}
    skin = paint(rng, *SKIN)
    natural = dict.fromkeys(("face", "ear", "neck", "nose"), skin)
    brow = paint(rng, "black", "brown", "gray", "orange")
    return (
        natural | {name: paint(rng) for name in free} | {"eyebrow": brow, "mouth": paint(rng, "red", "pink", "brown")}
    )


def layers(rng: np.random.Generator, colours: dict[str, Paint]) -> list[Layer]:
    """Return one random face, back to front; the head is about 1 high, centred on the origin."""
    material = {k: p.material for k, p in colours.items()}
    wide, high = rng.uniform(0.34, 0.41), rng.uniform(0.47, 0.53)
    look = rng.uniform(-0.07, 0.07), rng.uniform(-0.03, 0.05)
    tilt = rotation(float(rng.normal(0, 0.08)))
    out: list[Layer] = []

    def add(part: int, what: Material, *shapes: Floats) -> None:
        out.extend(Layer(polygon_V2=s @ tilt.T, part=part, material=what) for s in shapes)

    add(HAIR, material["hair"], *_back_hair(rng, wide, high))
    add(NECK, material["neck"].shaded(0.85), _neck(rng, wide, high))
    add(CLOTH, material["cloth"], *_shoulders(rng, wide, high))
    ear = rng.uniform(0.06, 0.08), rng.uniform(0.1, 0.14)
    for side in (-1, 1):
        reach = wide + 0.01 - side * look[0] * 0.5
        add(EAR, material["ear"].shaded(0.92), ellipse(side * reach + look[0] * 0.3, 0.02, *ear, side * 0.15))
    add(FACE, material["face"], _oval(rng, wide, high))
    _features(rng, add, material, look)
    add(HAIR, material["hair"], _fringe(rng, wide, high))
    return out


def _oval(rng: np.random.Generator, wide: float, high: float) -> Floats:
    """Return an ellipse that narrows to the chin."""
    points = ellipse(0, 0, wide, high)
    chin = rng.uniform(0.05, 0.3)
    points[:, 0] *= 1 - chin * np.clip(points[:, 1] / high, 0, 1) ** 2
    return points


def _features(rng: np.random.Generator, add: _Add, material: dict[str, Material], look: tuple[float, float]) -> None:
    dx, dy = look
    apart, eye_y = rng.uniform(0.15, 0.18), dy - rng.uniform(0.04, 0.09)
    eye = rng.uniform(0.085, 0.1), rng.uniform(0.042, 0.055)
    brow_y, brow_turn = eye_y - rng.uniform(0.105, 0.13), rng.normal(0, 0.12)
    brow = rng.uniform(0.09, 0.115), rng.uniform(0.024, 0.036)
    for side in (-1, 1):
        x = dx + side * apart
        add(EYE, material["eye"].shaded(1.6), ellipse(x, eye_y, *eye))
        add(EYE, material["eye"], ellipse(x + dx * 0.2, eye_y, eye[1] * 0.95, eye[1] * 0.95))
        add(EYEBROW, material["eyebrow"], ellipse(x, brow_y, *brow, side * brow_turn))
    nose_w, nose_h = rng.uniform(0.065, 0.095), rng.uniform(0.17, 0.22)
    tip = eye_y + nose_h
    bridge = np.array([(-0.025, 0.0), (0.025, 0.0), (nose_w, nose_h * 0.85), (-nose_w, nose_h * 0.85)])
    shade = 0.82
    add(NOSE, material["nose"].shaded(shade), bridge + np.array([dx * 1.2, eye_y + 0.015]))
    add(NOSE, material["nose"].shaded(shade), ellipse(dx * 1.25, tip - 0.01, nose_w, 0.05))
    lips = rng.uniform(0.11, 0.15), rng.uniform(0.035, 0.06)
    mouth_y = tip + rng.uniform(0.1, 0.13)
    add(MOUTH, material["mouth"], ellipse(dx * 1.1, mouth_y, *lips, rng.normal(0, 0.05)))


def _back_hair(rng: np.random.Generator, wide: float, high: float) -> list[Floats]:
    cap = ellipse(0, -0.1, wide + rng.uniform(0.07, 0.14), high + rng.uniform(0.0, 0.05))
    if rng.random() < 0.5:
        return [cap]
    length, spread = rng.uniform(0.25, 0.7), wide + rng.uniform(0.06, 0.16)
    return [cap, np.array([(-spread, -0.1), (spread, -0.1), (spread * 1.05, length), (-spread * 1.05, length)])]


def _fringe(rng: np.random.Generator, wide: float, high: float) -> Floats:
    """Return the hair over the forehead: from the crown down to a hairline with a parting."""
    angles = np.linspace(np.pi, 2 * np.pi, 17)
    crown = np.stack([(wide + 0.05) * np.cos(angles), (high + 0.05) * np.sin(angles) + 0.02], 1)
    crown[:, 1] -= 0.04
    x = np.linspace(wide + 0.05, -wide - 0.05, 13)
    parting, lift = rng.uniform(-0.2, 0.2), rng.uniform(0.24, 0.31)
    line = -lift + 0.9 * lift * np.clip(np.abs(x - parting) / (wide + 0.1), 0, 1) ** rng.uniform(1.6, 3.0)
    return np.concatenate([crown, np.stack([x, line], 1)])


def _neck(rng: np.random.Generator, wide: float, high: float) -> Floats:
    half = wide * rng.uniform(0.5, 0.68)
    return np.array([(-half, high * 0.5), (half, high * 0.5), (half * 1.1, high + 0.3), (-half * 1.1, high + 0.3)])


def _shoulders(rng: np.random.Generator, wide: float, high: float) -> list[Floats]:
    top, half = high + rng.uniform(0.08, 0.15), wide * rng.uniform(1.6, 2.0)
    collar, dip = wide * rng.uniform(0.45, 0.6), rng.uniform(0.04, 0.14)
    return [
        np.array(
            [
                (-collar, top),
                (0, top + dip),
                (collar, top),
                (half, top + 0.1),
                (half, top + 0.28),
                (-half, top + 0.28),
                (-half, top + 0.1),
            ]
        )
    ]
