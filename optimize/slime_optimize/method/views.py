"""Augmented views of the training images as latents and masks, a step at a time, encoded ahead in batches.

Nothing of the VAE is learned, so that no step has to encode.

Shape suffixes: B views of a step, S image side, h, w latent sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, repeat

import torch
import torch.nn.functional as F
from torch import Tensor

from slime_image import fit, fit_mask
from slime_optimize.backbone import Backbone
from slime_optimize.data.examples import Example
from slime_optimize.method.augment import apply_view, draw_view, part_points, recoloured
from slime_optimize.method.seeds import generator
from slime_optimize.settings import Settings

# Views encoded at once: sixteen of 128 x 128, and one where the images are SD's 512 x 512.
_PIXELS_AT_ONCE = 16 * 128 * 128


@dataclass(frozen=True, kw_only=True)
class _Canvas:
    """A training image at the backbone's size: (3,S,S) float32 in [-1,1], (S,S) int64, its painted parts."""

    pixels_3SS: Tensor
    mask_SS: Tensor
    parts: tuple[int, ...]


def views(
    backbone: Backbone, examples: Sequence[Example], settings: Settings, seed: int, steps: int, first: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Latents (B,4,h,w) and masks (B,h,w) of steps `first`..`steps`-1, encoded several steps ahead.

    A run that goes on from `first` gets the very views that it would have got.
    """
    uses = settings.steps_per_view
    fresh = _fresh_views(backbone, examples, settings, seed, -(-steps // uses), first // uses)
    for group, pair in enumerate(fresh, first // uses):
        yield from repeat(pair, min(steps, (group + 1) * uses) - max(first, group * uses))


def _fresh_views(
    backbone: Backbone, examples: Sequence[Example], settings: Settings, seed: int, steps: int, first: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """As `views`, each used once."""
    canvases = [_canvas(example, backbone.image_size, settings.channel_order) for example in examples]
    size = settings.batch_size
    ahead = max(1, _PIXELS_AT_ONCE // (backbone.image_size**2 * size))
    # Always the same steps together: a batch of another make-up gives latents that differ in the last bits.
    for begin in range(first - first % ahead, steps, ahead):
        turns = range(begin * size, min(begin + ahead, steps) * size)
        pairs = [_view(canvases, settings, seed, turn) for turn in turns]
        drawn = settings.posterior == "sample"
        chance = generator(seed, "posterior", begin) if drawn else None
        latents = backbone.encode(torch.stack([pixels for pixels, _ in pairs]), chance, encoder=settings.encoder)
        masks = _shrunk(torch.stack([mask for _, mask in pairs]), backbone.latent_size).to(backbone.device)
        together = zip(torch.split(latents, size), torch.split(masks, size), strict=True)
        yield from islice(together, max(0, first - begin), None)


def _view(canvases: Sequence[_Canvas], settings: Settings, seed: int, turn: int) -> tuple[Tensor, Tensor]:
    """A random view that shows enough of one part, each part in its turn."""
    chance = generator(seed, "views", turn)
    canvas = canvases[_index(turn, len(canvases), seed)]
    turn_of_part = turn % len(canvases) if settings.part_schedule == "epoch" else turn
    points = part_points(canvas.mask_SS, canvas.parts[turn_of_part % len(canvas.parts)])
    pixels_3SS = recoloured(canvas.pixels_3SS, canvas.mask_SS, settings.recolour_probability, chance)
    return apply_view(draw_view(settings, chance, points), pixels_3SS, canvas.mask_SS)


def _canvas(example: Example, size: int, order: str) -> _Canvas:
    mask_SS = torch.from_numpy(fit_mask(example.mask_HW, size)).long()
    parts = tuple(sorted(set(mask_SS.flatten().tolist())))
    return _Canvas(pixels_3SS=torch.from_numpy(fit(example.image_HW3, size, order)), mask_SS=mask_SS, parts=parts)


def _shrunk(mask_BSS: Tensor, size: int) -> Tensor:
    """Nearest pixel: (B,size,size) int64."""
    return F.interpolate(mask_BSS[:, None].float(), (size, size), mode="nearest-exact")[:, 0].long()


def _index(turn: int, count: int, seed: int) -> int:
    """Which image: every one once, in random order, then again in another."""
    epoch, place = divmod(turn, count)
    return int(torch.randperm(count, generator=generator(seed, "order", epoch))[place])
