"""The yardstick gives the masks that ours gives, from the same latents and noise, and holds what ours never makes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from benchmarks.make_random_backbone import random_segmenter
from benchmarks.published_inference import PublishedInference
from benchmarks.watch import Watch

import backbones
from slime_optimize import Backbone, load_backbone
from slime_optimize.method.prediction import Predictor
from slime_optimize.presets import REFERENCE
from slime_optimize.segmenter import Segmenter
from slime_was import finished, segment

SIDE = backbones.IMAGE_SIZE
SQUARE = backbones.LATENT_SIZE**4  # N x N elements


@pytest.fixture(scope="module", params=sorted(backbones.KINDS))
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """Each kind in float64."""
    folder = backbones.build(tmp_path_factory.mktemp("double") / request.param, request.param)
    return load_backbone(folder, dtype=torch.float64)


@pytest.fixture
def segmenter(backbone: Backbone) -> Segmenter:
    return random_segmenter(backbone, 5)


def _latents(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 4, 16, 16, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("published", [False, True], ids=["plain", "reference"])
def test_masks_equal_ours(backbone: Backbone, segmenter: Segmenter, published: bool) -> None:
    if published:
        segmenter = replace(segmenter, settings=REFERENCE.changed({"threshold": 0.05}))
    predictor, yardstick = Predictor(segmenter, backbone), PublishedInference.of(segmenter, backbone)
    scores = finished(*predictor.maps(_latents()), segmenter.settings.postprocess(SIDE))
    maps = yardstick.maps(_latents(), segmenter.noise.double())
    mask = yardstick.scores(*maps, SIDE).argmax(0)
    assert len(mask.unique()) > 1
    assert float((segment(scores, SIDE, SIDE) == mask).double().mean()) > 0.999


def test_every_draw_differs(backbone: Backbone, segmenter: Segmenter) -> None:
    yardstick = PublishedInference.of(segmenter, backbone)
    pixels = torch.rand(1, 3, SIDE, SIDE, dtype=torch.float64)
    assert not torch.equal(yardstick.encode(pixels), yardstick.encode(pixels))
    assert not torch.equal(yardstick.maps(_latents())[0], yardstick.maps(_latents())[0])


def test_images_to_masks(backbone: Backbone, segmenter: Segmenter) -> None:
    masks = PublishedInference.of(segmenter, backbone)(torch.rand(2, 3, SIDE, SIDE, dtype=torch.float64))
    assert masks.shape == (2, SIDE, SIDE) and int(masks.min()) >= 0 and int(masks.max()) < 5


def test_nothing_passes_and_all_is_background(backbone: Backbone, segmenter: Segmenter) -> None:
    yardstick = replace(PublishedInference.of(segmenter, backbone), threshold=1.0)
    assert not yardstick.scores(*yardstick.maps(_latents()), SIDE).any()


def test_holds_both_halves_square_maps(backbone: Backbone, segmenter: Segmenter) -> None:
    yardstick = PublishedInference.of(segmenter, backbone)
    top = backbone.unet.up_blocks[3].attentions[0].transformer_blocks[0].attn1.heads
    with Watch() as watch:
        yardstick.maps(_latents())
    assert watch.largest >= 2 * top * SQUARE
    assert watch.peak_bytes > 3 * 2 * top * SQUARE * 8  # the scores of three layers
