"""Pictures of masks: colours for parts, overlays, and sheets of images side by side with a legend.

Shape suffixes: H, W image sides, K colours.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Pixels = npt.NDArray[np.uint8]

_FIRST: tuple[Colour, ...] = (
    (40, 40, 46),
    (66, 133, 244),
    (251, 188, 5),
    (234, 67, 53),
    (52, 168, 83),
    (171, 71, 188),
    (0, 172, 193),
    (255, 112, 67),
    (158, 157, 36),
    (240, 98, 146),
)
_GOLDEN = 0.618034  # steps of the golden ratio around the colour circle keep hues apart
_GAP = 8
_LINE = 22


def palette(parts: int) -> tuple[Colour, ...]:
    """Return a colour for each part, dark grey for the background first; always the same."""
    return _FIRST[:parts] + tuple(_hue(index) for index in range(len(_FIRST), parts))


def colour_mask(mask_HW: Pixels, colours: Sequence[Colour]) -> Pixels:
    """Return part indices (H,W) as colours, (H,W,3) uint8 RGB; void, which has no colour, is white."""
    table_V3 = np.full((256, 3), 255, np.uint8)
    table_V3[: len(colours)] = colours
    coloured: Pixels = table_V3[mask_HW]
    return coloured


def overlay(image_HW3: Pixels, mask_HW: Pixels, colours: Sequence[Colour], opacity: float = 0.55) -> Pixels:
    """Return the image with the parts' colours over it, (H,W,3) uint8; the background stays as it is."""
    share_HW1 = np.where(mask_HW > 0, opacity, 0.0)[..., None]
    mixed = image_HW3 * (1 - share_HW1) + colour_mask(mask_HW, colours) * share_HW1
    laid: Pixels = mixed.round().astype(np.uint8)
    return laid


def sheet(
    rows: Sequence[Sequence[Pixels]],
    titles: Sequence[str],
    parts: Sequence[str],
    colours: Sequence[Colour],
    cell: int,
    captions: Sequence[str] = (),
) -> Image.Image:
    """Draw rows of RGB images, each fitted into a square of side `cell`, under titles and above a legend.

    captions: a line over each row, or none at all.
    """
    width = len(titles) * (cell + _GAP) + _GAP
    legend = _legend(parts, colours, width)
    over = _LINE if captions else 0
    height = _LINE + len(rows) * (over + cell + _GAP) + legend.height
    canvas = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for column, title in enumerate(titles):
        draw.text((_GAP + column * (cell + _GAP), 3), title, fill="black", font=font)
    for row, images in enumerate(rows):
        top = _LINE + row * (over + cell + _GAP)
        if captions:
            draw.text((_GAP, top + 3), captions[row], fill="black", font=font)
        for column, pixels in enumerate(images):
            canvas.paste(_fitted(pixels, cell), (_GAP + column * (cell + _GAP), top + over))
    canvas.paste(legend, (0, height - legend.height))
    return canvas


def _fitted(pixels: Pixels, cell: int) -> Image.Image:
    """Return the whole image, undistorted, in the middle of a white square."""
    image = Image.fromarray(pixels)
    scale = cell / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    square = Image.new("RGB", (cell, cell), "white")
    method = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    square.paste(image.resize(size, method), ((cell - size[0]) // 2, (cell - size[1]) // 2))
    return square


def _legend(parts: Sequence[str], colours: Sequence[Colour], width: int) -> Image.Image:
    font = ImageFont.load_default(13)
    places, x, y = [], _GAP, 2
    for name in parts:
        taken = 18 + int(font.getlength(name)) + 14
        if x > _GAP and x + taken > width:
            x, y = _GAP, y + _LINE
        places.append((x, y))
        x += taken
    strip = Image.new("RGB", (width, y + _LINE + 2), "white")
    draw = ImageDraw.Draw(strip)
    for (left, top), name, colour in zip(places, parts, colours, strict=True):
        draw.rectangle((left, top + 3, left + 12, top + 15), fill=tuple(colour))
        draw.text((left + 18, top + 1), name, fill="black", font=font)
    return strip


def _hue(index: int) -> Colour:
    light = (0.95, 0.7, 0.5)[index % 3]
    red, green, blue = colorsys.hsv_to_rgb(index * _GOLDEN % 1.0, 0.65, light)
    return round(255 * red), round(255 * green), round(255 * blue)
