"""A horse seen from the side: tapered limbs on a skeleton of joints, in any gait and with any neck."""

from __future__ import annotations

import numpy as np

from slime_backbone.raster import Floats, Layer, Material, Paint, ellipse, limb, paint, rotation

PARTS = ("background", "head", "leg", "neck+torso", "tail")
HEAD, LEG, TORSO, TAIL = range(1, 5)


def paints(rng: np.random.Generator) -> dict[str, Paint]:
    """Return a paint for each part: almost half of the horses have one coat and another tail."""
    coat = paint(rng)
    tail = paint(rng)
    if rng.random() < 0.4:
        return {"head": coat, "leg": coat, "neck+torso": coat, "tail": tail}
    return {"head": paint(rng), "leg": paint(rng), "neck+torso": coat, "tail": tail}


def layers(rng: np.random.Generator, colours: dict[str, Paint]) -> list[Layer]:
    """Return one random horse facing right, back to front, in scene units (the trunk is about 1 long)."""
    material = {k: p.material for k, p in colours.items()}
    shorten = rng.uniform(0.7, 1.0)
    half, depth = 0.5 * shorten, rng.uniform(0.17, 0.24)
    shoulder, hip = np.array([half * 0.75, 0.02]), np.array([-half * 0.78, 0.0])

    def add(shapes: list[Floats], part: int, what: Material) -> list[Layer]:
        return [Layer(polygon_V2=s, part=part, material=what) for s in shapes]

    leg, far_leg = material["leg"], material["leg"].shaded(0.72)
    far = [s for at in (shoulder, hip) for s in _leg(rng, at + np.array([0.05, 0.02]), depth, at is hip)]
    near = [s for at in (shoulder, hip) for s in _leg(rng, at, depth, at is hip)]
    neck_end, neck = _neck(rng, shoulder, depth)
    trunk = limb(np.array([hip, [0.0, 0.03], shoulder]), 2 * depth * np.array([1.0, rng.uniform(0.9, 1.1), 0.98]))
    return [
        *add(far, LEG, far_leg),
        *add(_tail(rng, hip, depth), TAIL, material["tail"]),
        *add(near, LEG, leg),
        *add(trunk, TORSO, material["neck+torso"]),
        *add(neck, TORSO, material["neck+torso"]),
        *add(_head(rng, neck_end), HEAD, material["head"]),
    ]


def _leg(rng: np.random.Generator, at: Floats, depth: float, hind: bool) -> list[Floats]:
    upper, lower = rng.uniform(0.26, 0.32), rng.uniform(0.28, 0.34)
    swing = rng.normal(0, 0.32)
    bend = abs(rng.normal(0, 0.4)) * (1 if hind else -1)
    top = at + np.array([0, depth * 0.55])
    knee = top + rotation(swing) @ [0, upper]
    hoof = knee + rotation(swing + bend) @ [0, lower]
    toe = hoof + rotation(swing + bend) @ [0.045, 0.02]
    return limb(np.array([top, knee, hoof, toe]), np.array([0.19 if hind else 0.16, 0.1, 0.075, 0.085]))


def _neck(rng: np.random.Generator, shoulder: Floats, depth: float) -> tuple[Floats, list[Floats]]:
    """Return the poll (where the head begins) and the neck's shapes."""
    raise_ = np.deg2rad(rng.uniform(-35, 75))
    length = rng.uniform(0.42, 0.55)
    base = shoulder + np.array([0.04, -depth * 0.4])
    end = base + length * np.array([np.cos(raise_), -np.sin(raise_)])
    middle = (base + end) / 2 + rng.normal(0, 0.02, 2)
    return end, limb(np.array([base, middle, end]), np.array([1.5 * depth, 1.1 * depth, 0.75 * depth]))


def _head(rng: np.random.Generator, poll: Floats) -> list[Floats]:
    down = np.deg2rad(rng.uniform(15, 75))
    along = np.array([np.cos(down), np.sin(down)])
    length = rng.uniform(0.3, 0.38)
    muzzle = poll + along * length
    shapes = limb(np.array([poll, poll + along * length * 0.45, muzzle]), np.array([0.17, 0.16, 0.1]))
    across = np.array([along[1], -along[0]])
    for offset in (-0.03, 0.045):
        root = poll + across * 0.06 - along * offset
        shapes.append(np.array([root + along * 0.035, root + across * 0.12 - along * 0.02, root - along * 0.035]))
    nose_x, nose_y = muzzle - along * 0.01
    return [*shapes, ellipse(nose_x, nose_y, 0.065, 0.055)]


def _tail(rng: np.random.Generator, hip: Floats, depth: float) -> list[Floats]:
    heading = np.deg2rad(rng.uniform(95, 190))
    points = [hip + np.array([-depth * 0.9, -depth * 0.3])]
    for _ in range(4):
        points.append(points[-1] + 0.14 * np.array([np.cos(heading), np.sin(heading)]))
        heading += (np.pi / 2 - heading) * 0.25 + rng.normal(0, 0.15)
    return limb(np.array(points), np.array([0.07, 0.11, 0.14, 0.13, 0.05]) * rng.uniform(0.8, 1.2))
