"""The shared form: one graph answers for many segmenters as each one's own would, in PyTorch and in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exporting import names, shared_segmenter

from backbones import LATENT_SIZE
from slime_export.forms import AsBaked, entry_of, group_of
from slime_export.graph import onnx_export as onnx
from slime_export.graph.networks import MapsUNet, SharedUNet
from slime_export.graph.runtimes import OnnxModel
from slime_export.graph.tracing import shared_unet_signature
from slime_optimize.backbone import Backbone, load_backbone
from slime_optimize.segmenter import Segmenter
from slime_optimize.settings import Settings
from slime_repository.variant import Variant
from slime_was.tensors import ACCUMULATED, CROSS, LATENTS

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "best": {"readout": "parts", "rescale": True, "flip_average": True, "edge_tolerance": 0.1},
    "passes": {"t_test": 100, "extra_timesteps": [300], "noise_samples": 2},
    "suppressed": {"suppress_first_part": True, "threshold": 0.01},
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory, make_segmenter: Callable[..., Path]) -> Backbone:
    return load_backbone(Segmenter.load(make_segmenter(tmp_path_factory.mktemp("shared"))).backbone_id)


@pytest.mark.parametrize("maps", ["averaged", pytest.param("weighted", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", names(OPTIONS))
def test_one_graph_for_segmenters_of_different_parts(name: str, maps: str, backbone: Backbone, tmp_path: Path) -> None:
    variant = Variant(maps=maps)
    two = [shared_segmenter(backbone, seed, parts, OPTIONS[name]) for seed, parts in ((1, 3), (2, 6))]
    groups = {group_of(each, variant) for each in two}
    assert len(groups) == 1
    (group,) = groups
    module = SharedUNet(two[0], backbone, group.most_parts, weighted=variant.weighted)
    onnx.write(module, shared_unet_signature(group), tmp_path)
    model = OnnxModel(tmp_path / onnx.FILE)
    latents = torch.randn(2, 4, LATENT_SIZE, LATENT_SIZE, generator=torch.Generator().manual_seed(3))
    entries = [entry_of(each, group, {}) for each in two]
    alone = [entry.given(1) for entry in entries]
    mixed = model(
        {LATENTS: latents.numpy(), **{name: np.concatenate([each[name] for each in alone]) for name in alone[0]}}
    )
    for turn, each in enumerate(two):
        with torch.no_grad():
            expected = MapsUNet(each, backbone, weighted=variant.weighted)(latents)
        got = AsBaked(model, entries[turn])({LATENTS: latents.numpy()})
        for name, value in mixed.items():  # a batch of both has each one's own maps
            own = value[turn, : len(each.parts)] if name in (CROSS, ACCUMULATED) else value[turn]
            np.testing.assert_allclose(own, got[name][turn], atol=1e-5)
        for value, known in zip(got.values(), expected, strict=True):
            assert value.shape == known.shape
            np.testing.assert_allclose(value, known.numpy(), atol=1e-4 * float(known.abs().max()))


def test_what_shapes_the_graph_makes_another_group(backbone: Backbone) -> None:
    plain = shared_segmenter(backbone, 1, 3, {})
    weighted = Variant(maps="weighted")
    group = group_of(plain, weighted)
    same = [
        {"threshold": 0.1},
        {"rescale": True},
        {"edge_tolerance": 0.2},
        {"channel_order": "bgr"},
        {"learning_rate": 0.5},
    ]
    assert {group_of(replace(plain, settings=Settings().changed(each)), weighted) for each in same} == {group}
    others = [{"t_test": 50}, {"flip_average": True}, {"readout": "parts"}, {"suppress_first_part": True}]
    made = {group_of(replace(plain, settings=Settings().changed(each)), weighted).key for each in others}
    made |= {group_of(plain, Variant()).key, group_of(shared_segmenter(backbone, 1, 9, {}), weighted).key}
    assert len(made) == 6 and group.key not in made
