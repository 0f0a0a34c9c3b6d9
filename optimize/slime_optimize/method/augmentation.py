"""Augmented views of the training images, as latents and masks, one step at a time.

A view is mirrored, rotated, cropped to a square, blurred, and may get other colours. The first three are one affine
map, so that image and mask are each resampled once; what a rotation uncovers is filled by reflection, in both. Masks
are resampled by the nearest pixel, so that neither parts nor IGNORED are mixed with their neighbours. Views are encoded
ahead in batches, since nothing of the VAE is learned.

Shape suffixes: B views of a step, S image side, h, w latent sides, N points, 2 is (x, y) with the image spanning -1..1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, repeat

import torch
import torch.nn.functional as F
from torch import Tensor

from slime_image import fit, fit_mask
from slime_optimize.backbone import Backbone
from slime_optimize.data.annotations import IGNORED, Example
from slime_optimize.method.seeds import generator
from slime_optimize.settings import Settings

# A view is drawn again until it shows this share of the part that it must show, so that small parts at the edge are
# not cropped away most of the time.
_SHOWN = 0.3
_ATTEMPTS = 50
_BLUR_UNIT = 512  # settings.blur is in pixels of an image of this side
_MIN_SIGMA = 0.05  # pixels; a smaller blur changes nothing
# Views encoded at once: sixteen of 128 x 128, and one where the images are SD's 512 x 512.
_PIXELS_AT_ONCE = 16 * 128 * 128


@dataclass(frozen=True, kw_only=True)
class View:
    """What a view shows: its point p shows the image at rotate(angle) @ (centre + side * p)."""

    angle: float = 0.0  # radians
    side: float = 1.0
    centre: tuple[float, float] = (0.0, 0.0)
    mirrored: bool = False
    sigma: float = 0.0  # blur, of the whole side

    def matrix(self) -> Tensor:
        """Return the affine map from the view to the image, (2,3) float32, as `affine_grid` takes it."""
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        rotation = torch.tensor([[cos, -sin], [sin, cos]])
        scale = torch.tensor([-self.side if self.mirrored else self.side, self.side])
        return torch.cat([rotation * scale, (rotation @ torch.tensor(self.centre))[:, None]], dim=1)

    def shows(self, points_N2: Tensor) -> float:
        """Return the share of the image's `points_N2` that lies inside the view."""
        matrix = self.matrix()
        within = (points_N2 - matrix[:, 2]) @ torch.linalg.inv(matrix[:, :2]).T
        return float((within.abs() <= 1).all(dim=1).float().mean())


def draw_view(settings: Settings, generator: torch.Generator, points_N2: Tensor | None = None) -> View:
    """Return a random view; with points, one that shows over 30 % of them, or the best of fifty."""
    best, most = View(), -1.0
    for _ in range(_ATTEMPTS):
        view = _draw(settings, generator)
        shown = 1.0 if points_N2 is None or not len(points_N2) else view.shows(points_N2)
        if shown > most:
            best, most = view, shown
        if shown > _SHOWN:
            break
    return best


def part_points(mask_SS: Tensor, part: int) -> Tensor:
    """Return the pixel centres of one part, (N,2) float32 in -1..1."""
    rows_columns = (mask_SS == part).nonzero()
    return (rows_columns.flip(1).float() + 0.5) * (2 / mask_SS.shape[0]) - 1


def apply_view(view: View, pixels_3SS: Tensor, mask_SS: Tensor) -> tuple[Tensor, Tensor]:
    """Return the view's pixels (3,S,S) float32, resampled bilinearly, and its mask (S,S) int64, by nearest pixel."""
    size = [1, 3, *pixels_3SS.shape[-2:]]
    grid = F.affine_grid(view.matrix()[None], size, align_corners=False)
    pixels = F.grid_sample(pixels_3SS[None], grid, "bilinear", "reflection", align_corners=False)
    labels = F.grid_sample(mask_SS[None, None].float(), grid, "nearest", "reflection", align_corners=False)
    return _blurred(pixels, view.sigma * pixels.shape[-1])[0], labels[0, 0].round().long()


def recoloured(pixels_3SS: Tensor, mask_SS: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Return pixels (3,S,S) float32 in [-1, 1] in which each part, with `probability`, has a random mean colour.

    A part keeps its texture. One image alone cannot show that a part may have another colour.
    """
    if probability <= 0:
        return pixels_3SS
    changed = pixels_3SS.clone()
    for part in _painted(mask_SS):
        values = torch.rand(5, generator=generator)
        where_SS = mask_SS == part
        if values[0] < probability:
            inside_3N = pixels_3SS[:, where_SS]
            texture_3N = inside_3N - inside_3N.mean(1, keepdim=True)
            changed[:, where_SS] = texture_3N * (0.4 + 0.6 * values[1]) + (2 * values[2:, None] - 1)
    return changed.clamp(-1, 1)


def _draw(settings: Settings, generator: torch.Generator) -> View:
    flip, rotation, size, x, y, blur = torch.rand(6, generator=generator).tolist()
    side = settings.crop[0] + (settings.crop[1] - settings.crop[0]) * size
    sigma = settings.blur[0] + (settings.blur[1] - settings.blur[0]) * blur
    return View(
        angle=math.radians(settings.rotation * (2 * rotation - 1)),
        side=side,
        centre=((1 - side) * (2 * x - 1), (1 - side) * (2 * y - 1)),
        mirrored=flip < settings.flip,
        sigma=sigma / _BLUR_UNIT,
    )


def _blurred(pixels_B3SS: Tensor, sigma: float) -> Tensor:
    if sigma < _MIN_SIGMA:
        return pixels_B3SS
    reach = min(math.ceil(3 * sigma), pixels_B3SS.shape[-1] - 1)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weights = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    padded = F.pad(pixels_B3SS, (reach, reach, reach, reach), mode="reflect")
    return F.conv2d(F.conv2d(padded, weights, groups=3), weights.mT, groups=3)


@dataclass(frozen=True, kw_only=True)
class _Canvas:
    """A training image at the backbone's size: pixels (3,S,S) float32 in [-1,1], mask (S,S) int64, painted parts."""

    pixels_3SS: Tensor
    mask_SS: Tensor
    parts: tuple[int, ...]


def views(
    backbone: Backbone, examples: Sequence[Example], settings: Settings, seed: int, steps: int, first: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield latents (B,4,h,w) and masks (B,h,w) int64 of steps `first`..`steps`-1, encoded several steps ahead.

    A run that continues at `first` gets the same views as one that was never stopped.
    """
    uses = settings.steps_per_view
    fresh = _fresh_views(backbone, examples, settings, seed, -(-steps // uses), first // uses)
    for group, pair in enumerate(fresh, first // uses):
        yield from repeat(pair, min(steps, (group + 1) * uses) - max(first, group * uses))


def _fresh_views(
    backbone: Backbone, examples: Sequence[Example], settings: Settings, seed: int, steps: int, first: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield as `views`, with views that are used once."""
    canvases = [_canvas(example, backbone.image_size, settings.channel_order) for example in examples]
    size = settings.batch_size
    ahead = max(1, _PIXELS_AT_ONCE // (backbone.image_size**2 * size))
    # Always the same steps together: a batch of other steps gives latents that differ in the last bits.
    for begin in range(first - first % ahead, steps, ahead):
        indices = range(begin * size, min(begin + ahead, steps) * size)
        pairs = [_view(canvases, settings, seed, index) for index in indices]
        sampler = generator(seed, "posterior", begin) if settings.posterior == "sample" else None
        latents = backbone.encode(torch.stack([pixels for pixels, _ in pairs]), sampler, encoder=settings.encoder)
        masks = _shrunk(torch.stack([mask for _, mask in pairs]), backbone.latent_size).to(backbone.device)
        together = zip(torch.split(latents, size), torch.split(masks, size), strict=True)
        yield from islice(together, max(0, first - begin), None)


def _view(canvases: Sequence[_Canvas], settings: Settings, seed: int, index: int) -> tuple[Tensor, Tensor]:
    """Return view number `index` of a run, random but for the part that it must show."""
    random = generator(seed, "views", index)
    # Every image once, in random order, then again in another.
    epoch, place = divmod(index, len(canvases))
    canvas = canvases[int(torch.randperm(len(canvases), generator=generator(seed, "order", epoch))[place])]
    part = (place if settings.part_schedule == "epoch" else index) % len(canvas.parts)
    points = part_points(canvas.mask_SS, canvas.parts[part])
    pixels_3SS = recoloured(canvas.pixels_3SS, canvas.mask_SS, settings.recolour_probability, random)
    return apply_view(draw_view(settings, random, points), pixels_3SS, canvas.mask_SS)


def _canvas(example: Example, size: int, order: str) -> _Canvas:
    mask_SS = torch.from_numpy(fit_mask(example.mask_HW, size)).long()
    # A part thinner than a pixel at this size may leave nothing but void.
    parts = _painted(mask_SS) or (0,)
    return _Canvas(pixels_3SS=torch.from_numpy(fit(example.image_HW3, size, order)), mask_SS=mask_SS, parts=parts)


def _painted(mask_SS: Tensor) -> tuple[int, ...]:
    """Return the parts that have a pixel, ascending."""
    return tuple(part for part in mask_SS.unique().tolist() if part != IGNORED)


def _shrunk(mask_BSS: Tensor, size: int) -> Tensor:
    """Return masks of `size` pixels a side by nearest pixel, (B,size,size) int64."""
    return F.interpolate(mask_BSS[:, None].float(), (size, size), mode="nearest-exact")[:, 0].long()
