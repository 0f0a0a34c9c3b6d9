"""The contract of the shared form: which models, and that their tensors fit together."""

from __future__ import annotations

import pytest

from slime_repository import contract
from slime_repository import shared_contract as shared
from slime_repository.config import parsed
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
    config = parsed(shared.shared_ensemble_config(group(maps), Versions(preprocess=3, unet=2), {"backbone": "b"}))
    known = {"IMAGE", "SEGMENTER"}
    for step in config.ensemble_scheduling.step:
        assert set(step.input_map.values()) <= known
        known |= set(step.output_map.values())
    assert known >= {"MASK", "SCORES", "DESCRIPTION"}
    first = config.ensemble_scheduling.step[0]
    assert (first.model_name, first.model_version) == ("segmenters", 3)
    assert config.parameters["form"].string_value == "shared"


def test_the_unets_inputs_are_what_segmenters_gives() -> None:
    given = {tensor.name for tensor in parsed(shared.segmenters_config()).output}
    unet = parsed(shared.shared_unet_config(group()))
    sizes = {tensor.name: list(tensor.dims) for tensor in (*unet.input, *unet.output)}
    assert {tensor.name for tensor in unet.input} - {"LATENTS"} <= given
    assert (sizes["NOISE"], sizes["ACCUMULATED"]) == ([8, 16, 16], [8, 16, 16])
    averaged = parsed(shared.shared_unet_config(group("averaged")))
    assert {tensor.name: list(tensor.dims) for tensor in averaged.output}["SELF"] == [256, 256]
