"""Draw flat polygons into an image and its exact index mask, in materials whose colours captions can name.

Knows polygons, materials, light and noise; does not know what a car is. Shapes are in scene units,
y down; `frame` maps them into the unit square, `render` draws the unit square.

Legend: S image side in pixels, O = S * OVERSAMPLE, L layers, V vertices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

OVERSAMPLE = 2
Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class Material:
    """Colour (3 values in [0, 1]) and a procedural texture fixed to the image plane."""

    colour: tuple[float, float, float]
    kind: int = 0  # 0 plain, 1 stripes, 2 checks, 3 mottled
    amplitude: float = 0.0
    frequency: float = 8.0  # cycles over the image
    angle: float = 0.0

    def shaded(self, factor: float) -> Material:
        """Return the same material under `factor` times the light."""
        r, g, b = (min(1.0, c * factor) for c in self.colour)
        return replace(self, colour=(r, g, b))


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A filled polygon_V2 of one part; later layers cover earlier ones."""

    polygon_V2: Floats
    part: int
    material: Material


def ellipse(cx: float, cy: float, rx: float, ry: float, turn: float = 0.0, n: int = 28) -> Floats:
    """Return the vertices (n, 2) of an ellipse turned by `turn` radians."""
    angles = np.linspace(0, 2 * np.pi, n, endpoint=False)
    points = np.stack([rx * np.cos(angles), ry * np.sin(angles)], 1)
    return np.asarray(points @ rotation(turn).T + [cx, cy])


def rotation(angle: float) -> Floats:
    """Return the 2x2 matrix that turns column vectors by `angle` radians."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s], [s, c]])


def limb(points: Floats, widths: Floats) -> list[Floats]:
    """Return a tapered chain through `points` (n, 2) with `widths` (n,): quads plus a disc at every joint."""
    shapes = [ellipse(x, y, w / 2, w / 2, n=16) for (x, y), w in zip(points, widths, strict=True)]
    for a, b, wa, wb in zip(points, points[1:], widths, widths[1:], strict=False):
        along = (b - a) / max(float(np.hypot(*(b - a))), 1e-6)
        side = np.array([-along[1], along[0]]) / 2
        shapes.append(np.array([a + side * wa, b + side * wb, b - side * wb, a - side * wa]))
    return shapes


def frame(layers: list[Layer], rng: np.random.Generator, *, squash: float) -> list[Layer]:
    """Fit the layers' bounding box into the unit square the way a box crop does.

    `squash` in [0, 1]: 0 keeps the aspect ratio, 1 stretches both sides to fill (a box crop resized to
    a square). A small random turn, margin, shift and flip are part of it.
    """
    turn = rotation(float(rng.normal(0, 0.06)))
    points = [layer.polygon_V2 @ turn.T for layer in layers]
    low = np.min([p.min(0) for p in points], 0)
    extent = np.max([p.max(0) for p in points], 0) - low
    scale = 1 / (extent**squash * extent.max() ** (1 - squash))
    scale = scale * rng.uniform(0.84, 1.02)
    free = 1 - extent * scale
    shift = free * rng.uniform(0.3, 0.7, 2)
    flip = rng.random() < 0.5
    placed = []
    for layer, p in zip(layers, points, strict=True):
        q = (p - low) * scale + shift
        if flip:
            q = np.stack([1 - q[:, 0], q[:, 1]], 1)
        placed.append(replace(layer, polygon_V2=q))
    return placed


def render(layers: list[Layer], rng: np.random.Generator, size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return image (S, S, 3) and index mask (S, S), uint8, of layers in the unit square; the first is the backdrop."""
    index_OO = indices(layers, size)
    image = coloured(layers, index_OO, rng)
    noise = float(rng.uniform(0.0, 0.035))
    parts = np.array([layer.part for layer in layers], np.uint8)
    return noisy(image, noise, rng), parts[index_OO[::OVERSAMPLE, ::OVERSAMPLE]]


def indices(layers: list[Layer], size: int) -> NDArray[np.uint8]:
    """Return which layer is seen at each place of a grid (O, O); the first layer fills what no other covers."""
    canvas = Image.new("L", (size * OVERSAMPLE, size * OVERSAMPLE), 0)
    draw = ImageDraw.Draw(canvas)
    for index, layer in enumerate(layers[1:], 1):
        draw.polygon([(float(x), float(y)) for x, y in layer.polygon_V2 * size * OVERSAMPLE], fill=index)
    return np.asarray(canvas)


def noisy(image_SS3: Floats, deviation: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return an image in about [0, 1] as uint8, with normal noise of that deviation."""
    image = image_SS3 + rng.normal(0, deviation, image_SS3.shape)
    return np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)


def coloured(
    layers: list[Layer],
    index_OO: NDArray[np.uint8],
    rng: np.random.Generator,
    surface_2OO: Floats | None = None,
) -> Floats:
    """Return colour + texture, under a light that fades across the image; (S, S, 3) in about [0, 1], without noise.

    surface_2OO: for each place of the grid, where on its layer's texture it lies, x then y, float32, in units of the
    image's side; by default where it lies in the image. Layers that move carry their texture with them.
    """
    materials = [layer.material for layer in layers]
    colour_L3 = np.array([m.colour for m in materials], np.float32)
    y, x = np.mgrid[0 : len(index_OO), 0 : len(index_OO)].astype(np.float32) / len(index_OO)
    surface = (x, y) if surface_2OO is None else (surface_2OO[0], surface_2OO[1])
    texture_OO = _texture(materials, index_OO, *surface, rng)
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.35)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))  # numpy 2 would go on in double precision
    light_OO = rng.uniform(0.8, 1.1) + strength * ((x - 0.5) * cos + (y - 0.5) * sin)
    tint = 1 + rng.normal(0, 0.04, 3).astype(np.float32)
    colour_OO3 = (colour_L3[index_OO] + texture_OO[..., None]) * (light_OO[..., None] * tint)
    size = len(index_OO) // OVERSAMPLE
    return np.asarray(colour_OO3.reshape(size, OVERSAMPLE, size, OVERSAMPLE, 3).mean((1, 3)))


def _texture(
    materials: list[Material], index_OO: NDArray[np.uint8], x: Floats, y: Floats, rng: np.random.Generator
) -> Floats:
    fields = np.array([[m.kind, m.amplitude, 2 * np.pi * m.frequency, m.angle] for m in materials], np.float32)
    kind, amplitude, omega, angle = np.moveaxis(fields[index_OO], -1, 0)
    u = np.sin(omega * (x * np.cos(angle) + y * np.sin(angle)))
    v = np.sin(omega * (y * np.cos(angle) - x * np.sin(angle)))
    noise = Image.fromarray(rng.normal(0, 1, (20, 20)).astype(np.float32))
    mottle = np.asarray(noise.resize((len(x), len(x)), Image.Resampling.BICUBIC))
    mottle = mottle[_mirrored(y, len(x)), _mirrored(x, len(x))]
    pattern = np.select([kind == 1, kind == 2, kind == 3], [u, u * v, mottle], 0.0)
    return np.asarray(amplitude * pattern)


def _mirrored(places: Floats, count: int) -> NDArray[np.int64]:
    """Return the nearest of `count` samples over [0, 1), which are mirrored beyond."""
    around = np.rint(places * count).astype(np.int64) % (2 * count)
    return np.asarray(np.minimum(around, 2 * count - 1 - around))


COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.82, 0.12, 0.12),
    "orange": (0.95, 0.52, 0.10),
    "yellow": (0.93, 0.86, 0.20),
    "green": (0.16, 0.60, 0.22),
    "cyan": (0.25, 0.80, 0.82),
    "blue": (0.14, 0.27, 0.80),
    "purple": (0.50, 0.20, 0.65),
    "pink": (0.95, 0.58, 0.72),
    "brown": (0.45, 0.27, 0.14),
    "white": (0.94, 0.94, 0.93),
    "gray": (0.52, 0.52, 0.53),
    "black": (0.09, 0.09, 0.10),
}
SKIN: dict[str, tuple[float, float, float]] = {
    "pale": (0.93, 0.78, 0.68),
    "tan": (0.80, 0.60, 0.45),
    "dark": (0.40, 0.26, 0.19),
}


@dataclass(frozen=True, kw_only=True)
class Paint:
    """A material and the word a caption uses for its colour."""

    word: str
    material: Material


def paint(rng: np.random.Generator, *words: str) -> Paint:
    """Return one of `words` (any named colour when none is given), jittered, with a random texture."""
    word = str(rng.choice(list(words) or list(COLOURS)))
    base = np.array((COLOURS | SKIN)[word]) + rng.normal(0, 0.035, 3)
    r, g, b = np.clip(base, 0.02, 0.98)
    kind = int(rng.choice(4, p=[0.5, 0.15, 0.1, 0.25]))
    material = Material(
        colour=(float(r), float(g), float(b)),
        kind=kind,
        amplitude=float(rng.uniform(0.02, 0.07)) if kind else 0.0,
        frequency=float(rng.uniform(4, 16)),
        angle=float(rng.uniform(0, np.pi)),
    )
    return Paint(word=word, material=material)
