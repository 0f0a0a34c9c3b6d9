"""A car: a side profile extruded to a box-like solid, turned and projected; lights, plate and windows lie on its faces.

Axes: x forward, y towards the viewer's side, z up; orthographic projection.
"""

from __future__ import annotations

import numpy as np

from slime_backbone.raster import Floats, Layer, Material, Paint, paint

PARTS = ("background", "body", "light", "plate", "wheel", "window")
BODY, LIGHT, PLATE, WHEEL, WINDOW = range(1, 6)


def paints(rng: np.random.Generator) -> dict[str, Paint]:
    """Return a paint for each part; half of the cars have usual colours for all parts but the body."""
    usual = rng.random() < 0.5
    return {
        "body": paint(rng),
        "light": paint(rng, *(("white", "yellow", "red", "orange") if usual else ())),
        "plate": paint(rng, *(("white", "yellow") if usual else ())),
        "wheel": paint(rng, *(("black", "gray") if usual else ())),
        "window": paint(rng, *(("black", "cyan", "blue", "gray") if usual else ())),
    }


def layers(rng: np.random.Generator, colours: dict[str, Paint]) -> list[Layer]:
    """Return the visible faces of one random car, back to front, in scene units."""
    yaw, pitch = np.deg2rad(rng.uniform(8, 66)), np.deg2rad(rng.uniform(2, 16))
    body, material = _Body(rng), {k: p.material for k, p in colours.items()}

    def add(points_V3: Floats, part: int, what: Material) -> Layer:
        return Layer(polygon_V2=_project(points_V3, yaw, pitch), part=part, material=what)

    far = [add(body.wheel(x, -1.0), WHEEL, material["wheel"].shaded(0.7)) for x in body.axles]
    strips = [add(quad, BODY, material["body"].shaded(shade)) for quad, shade in body.strips()]
    side = [add(body.side(), BODY, material["body"].shaded(0.9))]
    windows = [add(quad, WINDOW, material["window"]) for quad in body.windows()]
    front = [add(quad, LIGHT, material["light"]) for quad in body.lights()]
    front.append(add(body.plate(), PLATE, material["plate"]))
    near = [add(body.wheel(x, 1.0), WHEEL, material["wheel"]) for x in body.axles]
    hubs = [add(body.wheel(x, 1.02, 0.45), WHEEL, material["wheel"].shaded(1.8)) for x in body.axles]
    return [*far, *strips, *side, *windows, *front, *near, *hubs]


def _project(points_V3: Floats, yaw: float, pitch: float) -> Floats:
    x, y, z = points_V3.T
    across = x * np.cos(yaw) - y * np.sin(yaw)
    towards = x * np.sin(yaw) + y * np.cos(yaw)
    return np.stack([across, -z * np.cos(pitch) + towards * np.sin(pitch)], 1)


class _Body:
    """Random proportions, from hatchback to van; `y` runs from -1 to 1 in units of the half width."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.half = rng.uniform(0.8, 0.95)
        self.floor, self.belt, self.roof = rng.uniform(0.22, 0.36), rng.uniform(0.9, 1.08), rng.uniform(1.45, 1.8)
        self.nose, self.tail = rng.uniform(1.9, 2.2), -rng.uniform(1.7, 2.2)
        self.hood = rng.uniform(0.9, 1.3)  # where the windscreen meets the bonnet
        self.slope = rng.uniform(0.35, 0.75)
        self.rear = self.tail + rng.uniform(0.02, 0.6)
        self.drop = rng.uniform(0.05, 0.2)
        self.radius = rng.uniform(0.36, 0.45)
        self.axles = (self.nose - rng.uniform(0.6, 0.75), self.tail + rng.uniform(0.55, 0.75))
        self.light_size = rng.uniform(0.2, 0.28), rng.uniform(0.2, 0.3)
        self.plate_size = rng.uniform(0.34, 0.44), rng.uniform(0.17, 0.22)
        self.pillar = rng.uniform(0.3, 0.7)

    def _profile(self) -> list[tuple[float, float]]:
        """Return (x, z) of the outline from the front bumper over the roof to the rear bumper."""
        front_top = self.belt - self.drop
        return [
            (self.nose, self.floor),
            (self.nose - 0.05, front_top),
            (self.hood, self.belt),
            (self.hood - self.slope, self.roof),
            (self.rear + 0.25, self.roof - 0.04),
            (self.rear, self.belt),
            (self.tail, self.belt - 0.05),
            (self.tail, self.floor),
        ]

    def _lift(self, points: list[tuple[float, float]], y: float) -> Floats:
        return np.array([(x, y * self.half, z) for x, z in points])

    def side(self) -> Floats:
        return self._lift(self._profile(), 1.0)

    def strips(self) -> list[tuple[Floats, float]]:
        """Return front, bonnet, windscreen frame and roof as quads across the car, each with its shade."""
        profile, shades = self._profile(), (0.8, 1.1, 1.0, 1.15)
        quads = []
        for i in (3, 2, 1, 0):
            a, b = profile[i], profile[i + 1]
            quads.append((np.concatenate([self._lift([a, b], 1.0), self._lift([b, a], -1.0)]), shades[i]))
        return quads

    def windows(self) -> list[Floats]:
        """Return windscreen and two side windows."""
        top, bottom = self.roof - 0.1, self.belt + 0.03
        a, b = (self.hood - 0.06, self.belt + 0.06), (self.hood - self.slope + 0.05, self.roof - 0.06)
        screen = np.concatenate([self._lift([a, b], 0.86), self._lift([b, a], -0.86)])
        front_low, front_high = self.hood - 0.16, self.hood - self.slope - 0.06
        rear_low, rear_high = self.rear + 0.14, self.rear + 0.32
        split = rear_high + (front_high - rear_high) * self.pillar
        fore = [(front_low, bottom), (front_high, top), (split + 0.05, top), (split + 0.05, bottom)]
        aft = [(split - 0.05, bottom), (split - 0.05, top), (rear_high, top), (rear_low, bottom)]
        return [screen, self._lift(fore, 1.0), self._lift(aft, 1.0)]

    def _on_front(self, y: float, z: float, half_y: float, half_z: float) -> Floats:
        corners = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
        return np.array([(self.nose, (y + half_y * a) * self.half, z + half_z * b) for a, b in corners])

    def lights(self) -> list[Floats]:
        half_y, half_z = self.light_size[0], self.light_size[1] / 2
        z = self.belt - self.drop - half_z - 0.05
        return [self._on_front(y, z, half_y, half_z) for y in (-1 + half_y, 1 - half_y)]

    def plate(self) -> Floats:
        half_y, half_z = self.plate_size[0], self.plate_size[1] / 2
        return self._on_front(0.0, self.floor + half_z + 0.06, half_y, half_z)

    def wheel(self, x: float, y: float, scale: float = 1.0) -> Floats:
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        r = self.radius * scale
        return np.stack([x + r * np.cos(angles), np.full(24, y * self.half), self.radius + r * np.sin(angles)], 1)
