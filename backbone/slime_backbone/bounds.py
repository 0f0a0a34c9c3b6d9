"""What a mean IoU on PartScenes is worth: the best that maps of a size can give, and what needs no understanding.

ceiling          the true mask as shares of each map cell, enlarged back
nearest colour   every pixel takes the part of the training image's pixel nearest in colour and position
random backbone  the same optimisation on the backbone's shapes with random weights

Legend: S image side, P parts, h map side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch.nn import functional

from slime_backbone.models import LATENT, build_text_encoder, build_unet
from slime_backbone.scene import COUNTS, Scene, parts_of, scene
from slime_optimize.backbone import Backbone
from slime_optimize.data.annotations import Example
from slime_optimize.method.prediction import Predictor
from slime_optimize.method.training import optimise
from slime_optimize.metrics import Report, confusion, report
from slime_optimize.settings import Settings
from slime_was import segment


def test_scenes(kind: str, count: int) -> Iterator[Scene]:
    """Yield the first `count` of the scenes that every figure is measured on."""
    return (scene(kind, "test", index) for index in range(count))


def ceiling(kind: str, map_size: int = LATENT, count: int = COUNTS["test"]) -> Report:
    """Measure the true masks after they went through maps of map_size x map_size."""
    parts = parts_of(kind)
    counts = []
    for one in test_scenes(kind, count):
        shares_PSS = functional.one_hot(torch.from_numpy(one.mask).long(), len(parts)).permute(2, 0, 1).float()
        shares_Phh = functional.adaptive_avg_pool2d(shares_PSS, map_size).numpy()
        counts.append(confusion(one.mask, segment(shares_Phh, *one.mask.shape), len(parts)))
    return report(counts, parts)


def nearest_colour(kind: str, count: int = COUNTS["test"]) -> Report:
    """Measure the training image as a lookup table of (r, g, b, y, x), all in [0, 1]."""
    parts, shown = parts_of(kind), scene(kind, "train-1", 0)
    table = cKDTree(_features(shown.image))
    counts = []
    for one in test_scenes(kind, count):
        _, nearest = table.query(_features(one.image))
        counts.append(confusion(one.mask, shown.mask.ravel()[nearest].reshape(one.mask.shape), len(parts)))
    return report(counts, parts)


def _features(image_SS3: NDArray[np.uint8]) -> NDArray[np.float64]:
    side = len(image_SS3)
    y, x = np.mgrid[0:side, 0:side] / side
    return np.concatenate([image_SS3.reshape(-1, 3) / 255, y.reshape(-1, 1), x.reshape(-1, 1)], 1)


def random_backbone(
    kind: str, trained: Backbone, settings: Settings, *, seed: int = 0, progress: bool = True
) -> Report:
    """Measure `trained`'s VAE and tokenizer with a UNet and a text encoder that never learned anything."""
    torch.manual_seed(seed)
    unet, text_encoder = build_unet(), build_text_encoder(trained.tokenizer)
    untrained = replace(
        trained,
        id="random",
        hash="random",
        unet=unet.eval().requires_grad_(False),
        text_encoder=text_encoder.eval().requires_grad_(False),
    )
    parts, shown = parts_of(kind), scene(kind, "train-1", 0)
    example = Example(name=kind, image_HW3=shown.image, mask_HW=shown.mask)
    segmenter = optimise(untrained, [example], parts, settings, seed=seed, progress=progress)
    predictor = Predictor(segmenter, untrained)
    scenes = list(test_scenes(kind, COUNTS["test"]))
    masks = predictor.masks([one.image for one in scenes])
    return report([confusion(o.mask, m, len(parts)) for o, m in zip(scenes, masks, strict=True)], parts)
