"""The contract of the shared form: which models, and that their tensors fit together."""

from __future__ import annotations

import re

import pytest

from slime_repository import contract
from slime_repository import shared_contract as shared
from slime_repository.contract import Versions
from slime_repository.shared_contract import Group
from slime_repository.variant import Variant


def group(maps: str = "weighted") -> Group:
    return Group(
        key="0123abcd",
        most_parts=8,
        noise_samples=2,
        text_width=64,
        latent_channels=4,
        latent_size=16,
        variant=Variant(maps=maps),
    )


def test_groups_are_told_from_segmenters() -> None:
    assert shared.is_group(group().name) and not shared.is_group("car") and not shared.is_group("shared_car")
    for name in (group().name, shared.SEGMENTERS):
        with pytest.raises(ValueError, match="choose another name"):
            contract.unet_name(name)


@pytest.mark.parametrize(("parts", "most"), [(2, 8), (8, 8), (9, 16), (33, 77), (77, 77)])
def test_rooms_for_parts(parts: int, most: int) -> None:
    assert shared.most_parts(parts) == most


@pytest.mark.parametrize("maps", ["weighted", "averaged"])
def test_every_tensor_of_the_ensemble_comes_from_a_step_before(maps: str) -> None:
    text = shared.shared_ensemble_config(group(maps), Versions(preprocess=3, unet=2), {"backbone": "b"})
    known = {"IMAGE", "SEGMENTER"}
    for step in text.split("  step {")[1:]:
        taken, given = (re.findall(rf'{way}_map {{ key: "(\w+)"', step) for way in ("input", "output"))
        assert set(taken) <= known
        known |= set(given)
    assert known >= {"MASK", "SCORES", "DESCRIPTION"}
    assert (
        'model_name: "segmenters"\n    model_version: 3' in text and '"form" value { string_value: "shared" }' in text
    )


def test_the_unets_inputs_are_what_segmenters_gives() -> None:
    given = set(re.findall(r'output \[{ name: "(\w+)"', shared.segmenters_config()))
    taken = set(re.findall(r'input \[{ name: "(\w+)"', shared.shared_unet_config(group())))
    assert taken - {"LATENTS"} <= given
    text = shared.shared_unet_config(group())
    assert 'name: "NOISE", data_type: TYPE_FP32, dims: [8, 16, 16]' in text
    assert 'name: "ACCUMULATED", data_type: TYPE_FP32, dims: [8, 16, 16]' in text
    assert 'name: "SELF", data_type: TYPE_FP32, dims: [256, 256]' in shared.shared_unet_config(group("averaged"))
