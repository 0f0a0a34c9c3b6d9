"""Random views of a training image and its mask: mirror, rotation, square crop, blur, and colours of their own.

The first three are one affine map, so that image and mask are each resampled once; what a rotation
uncovers is filled by reflection, in both. All chance comes from the generator that is passed.

Shape suffixes: S image side, N points, 2 is (x, y) with the image spanning -1..1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from slime_optimize.settings import Settings

# A view is drawn again until it shows this much of the part whose turn it is, so that small parts
# at the edge are not cropped away most of the time.
_SHOWN = 0.3
_DRAWS = 50
_BLUR_UNIT = 512  # settings.blur is in pixels of an image of this side
_LEAST_SIGMA = 0.05  # pixels; under it a blur changes nothing


@dataclass(frozen=True, kw_only=True)
class View:
    """Where a view looks: a point p of it shows the image at rotate(angle) @ (centre + side * p)."""

    angle: float = 0.0  # radians
    side: float = 1.0
    centre: tuple[float, float] = (0.0, 0.0)
    mirrored: bool = False
    sigma: float = 0.0  # blur, of the whole side

    def matrix(self) -> Tensor:
        """(2,3) float32: a point of the view -> a point of the image, as `affine_grid` wants it."""
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        turn = torch.tensor([[cos, -sin], [sin, cos]])
        scale = torch.tensor([-self.side if self.mirrored else self.side, self.side])
        return torch.cat([turn * scale, (turn @ torch.tensor(self.centre))[:, None]], dim=1)

    def shows(self, points_N2: Tensor) -> float:
        """The share of the image's `points_N2` that lies inside the view."""
        matrix = self.matrix()
        within = (points_N2 - matrix[:, 2]) @ torch.linalg.inv(matrix[:, :2]).T
        return float((within.abs() <= 1).all(dim=1).float().mean())


def draw_view(settings: Settings, generator: torch.Generator, points_N2: Tensor | None = None) -> View:
    """A random view; with points, one that shows over 30 % of them, or the best of fifty."""
    best, most = View(), -1.0
    for _ in range(_DRAWS):
        view = _draw(settings, generator)
        shown = 1.0 if points_N2 is None or not len(points_N2) else view.shows(points_N2)
        if shown > most:
            best, most = view, shown
        if shown > _SHOWN:
            break
    return best


def part_points(mask_SS: Tensor, part: int) -> Tensor:
    """Pixel centres of one part, (N,2) float32 in -1..1."""
    rows_columns = (mask_SS == part).nonzero()
    return (rows_columns.flip(1).float() + 0.5) * (2 / mask_SS.shape[0]) - 1


def apply_view(view: View, pixels_3SS: Tensor, mask_SS: Tensor) -> tuple[Tensor, Tensor]:
    """The view's pixels (3,S,S) float32, bilinear, and its mask (S,S) int64, nearest."""
    size = [1, 3, *pixels_3SS.shape[-2:]]
    grid = F.affine_grid(view.matrix()[None], size, align_corners=False)
    pixels = F.grid_sample(pixels_3SS[None], grid, "bilinear", "reflection", align_corners=False)
    labels = F.grid_sample(mask_SS[None, None].float(), grid, "nearest", "reflection", align_corners=False)
    return _blurred(pixels, view.sigma * pixels.shape[-1])[0], labels[0, 0].round().long()


def recoloured(pixels_3SS: Tensor, mask_SS: Tensor, chance: float, generator: torch.Generator) -> Tensor:
    """Each part, with `chance`, keeps its texture around a random mean colour; (3,S,S) float32 in [-1, 1].

    One image cannot tell that a part may have another colour; its mask lets views say so.
    """
    if chance <= 0:
        return pixels_3SS
    changed = pixels_3SS.clone()
    for part in mask_SS.unique().tolist():
        draw = torch.rand(5, generator=generator)
        where_SS = mask_SS == part
        if draw[0] < chance:
            inside_3N = pixels_3SS[:, where_SS]
            texture_3N = inside_3N - inside_3N.mean(1, keepdim=True)
            changed[:, where_SS] = texture_3N * (0.4 + 0.6 * draw[1]) + (2 * draw[2:, None] - 1)
    return changed.clamp(-1, 1)


def _draw(settings: Settings, generator: torch.Generator) -> View:
    flip, turn, size, x, y, blur = torch.rand(6, generator=generator).tolist()
    side = settings.crop[0] + (settings.crop[1] - settings.crop[0]) * size
    sigma = settings.blur[0] + (settings.blur[1] - settings.blur[0]) * blur
    return View(
        angle=math.radians(settings.rotation * (2 * turn - 1)),
        side=side,
        centre=((1 - side) * (2 * x - 1), (1 - side) * (2 * y - 1)),
        mirrored=flip < settings.flip,
        sigma=sigma / _BLUR_UNIT,
    )


def _blurred(pixels_B3SS: Tensor, sigma: float) -> Tensor:
    if sigma < _LEAST_SIGMA:
        return pixels_B3SS
    reach = min(math.ceil(3 * sigma), pixels_B3SS.shape[-1] - 1)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weights = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    padded = F.pad(pixels_B3SS, (reach, reach, reach, reach), mode="reflect")
    return F.conv2d(F.conv2d(padded, weights, groups=3), weights.mT, groups=3)
