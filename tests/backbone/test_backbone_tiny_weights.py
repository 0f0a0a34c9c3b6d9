"""The tiny encoder that ships belongs to the VAE that ships, and costs a fraction of it."""

from __future__ import annotations

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from slime_backbone.distillation import relative_error, vae_digest
from slime_backbone.tiny import validation
from slime_optimize.backbone import Backbone, embedded_folder, load_backbone


@pytest.fixture(scope="module")
def embedded() -> Backbone:
    return load_backbone("embedded")


def test_the_one_that_ships_was_taught_by_the_vae_that_ships(embedded: Backbone) -> None:
    folder = embedded_folder()
    record = json.loads((folder / "tiny_vae" / "training.json").read_text())
    assert record["vae"] == vae_digest(folder)
    assert embedded.tiny is not None
    found = relative_error(embedded.tiny.model, validation(folder))
    assert found == pytest.approx(record["relative_error"], abs=1e-3)
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 25e6


def test_the_one_that_ships_costs_at_most_a_fifth(embedded: Backbone) -> None:
    pixels, macs = torch.zeros(1, 3, 128, 128), []
    for encoder in ("tiny", "vae"):
        with FlopCounterMode(display=False) as counted:  # the VAE's attention is not even counted
            embedded.encode(pixels, encoder=encoder)
        macs.append(counted.get_total_flops() / 2)
    assert macs[0] <= macs[1] / 5
