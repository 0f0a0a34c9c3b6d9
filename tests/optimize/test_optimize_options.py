"""Options the paper does not have: colours of views, an exponent of class weights, maps over the parts alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from slime_optimize import Backbone
from slime_optimize.data.annotations import Example
from slime_optimize.errors import InputError
from slime_optimize.method.augmentation import recoloured
from slime_optimize.method.losses import class_weights
from slime_optimize.method.prediction import Predictor
from slime_optimize.method.training import optimise
from slime_optimize.presets import PRESETS
from slime_optimize.settings import Settings

PARTS = ("background", "red", "green")


def test_the_paper_preset_uses_none_of_them() -> None:
    paper = PRESETS["paper"]
    assert (paper.recolour_probability, paper.class_weight_power, paper.readout) == (0.0, 1.0, "tokens")


def test_recolouring_gives_each_part_a_colour_and_keeps_its_texture() -> None:
    pixels = 0.2 * torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(8, 8, dtype=torch.long)
    mask[2:6, 2:6] = 1
    changed = recoloured(pixels, mask, 1.0, torch.Generator().manual_seed(1))
    for part in (0, 1):
        before, after = pixels[:, mask == part], changed[:, mask == part]
        assert (before.mean(1) - after.mean(1)).abs().max() > 0.1
        flat = torch.stack([before[0] - before[0].mean(), after[0] - after[0].mean()])
        assert torch.corrcoef(flat)[0, 1] > 0.9
    assert changed.abs().max() <= 1


def test_no_recolouring_leaves_image_and_chance_alone() -> None:
    generator = torch.Generator().manual_seed(3)
    state, pixels = generator.get_state(), torch.rand(3, 4, 4)
    assert recoloured(pixels, torch.zeros(4, 4, dtype=torch.long), 0.0, generator) is pixels
    assert torch.equal(generator.get_state(), state)


def test_class_weights_by_exponent() -> None:
    mask = torch.tensor([[0, 0, 0, 1]])
    assert class_weights(mask, 3).tolist() == pytest.approx([4 / 3, 4, 0])
    assert class_weights(mask, 3, 0.5).tolist() == pytest.approx([(4 / 3) ** 0.5, 2, 0])
    assert class_weights(mask, 3, 0.0).tolist() == [1, 1, 0]
    mask = torch.tensor([[0, 0, 0, 1, 2, 2]])
    assert class_weights(mask, 4, foreground=True).tolist() == pytest.approx([1, 3, 1.5, 0])


@pytest.mark.parametrize("readout", ["tokens", "parts"])
def test_scores_follow_the_readout(backbone: Backbone, example: Example, readout: str) -> None:
    settings = Settings(steps=2, threshold=0.0, readout=readout)
    segmenter = optimise(backbone, [example], PARTS, settings, progress=False)
    predictor = Predictor(segmenter, backbone)
    cross, _ = predictor.maps(predictor.latents([example.image_HW3]))
    sums = cross.sum(1)
    if readout == "parts":
        assert torch.allclose(sums, torch.ones_like(sums), atol=1e-5)
    else:
        assert sums.max() < 0.999
    other = Predictor(replace(segmenter, settings=Settings(steps=2, threshold=0.0, readout="tokens")), backbone)
    same = torch.equal(other.maps(predictor.latents([example.image_HW3]))[0], cross)
    assert same == (readout == "tokens")


@pytest.mark.parametrize(
    ("name", "value"), [("readout", "heads"), ("recolour_probability", 1.5), ("class_weight_power", -0.1)]
)
def test_values_out_of_range(name: str, value: object) -> None:
    with pytest.raises(InputError, match=name):
        Settings(**{name: value})  # type: ignore[arg-type]
