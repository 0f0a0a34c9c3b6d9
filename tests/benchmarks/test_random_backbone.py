"""Random backbones are of Stable Diffusion's shapes, load as any other, and their maps have peaks that differ."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.common import random_backbone
from benchmarks.common.pictures import picture
from benchmarks.common.random_backbone import LEAST_SHARE, SHAPES, Shape, bare, random_segmenter, shares, write
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

from slime_image import fit
from slime_optimize import Backbone, load_backbone
from slime_optimize.method.prediction import Predictor
from slime_optimize.segmenter import Segmenter

TINY = Shape(
    unet={"sample_size": 16, "block_out_channels": (32,) * 4, "attention_head_dim": 2, "cross_attention_dim": 32},
    vae={**SHAPES["sd21"].vae, "block_out_channels": (32,) * 4, "layers_per_block": 1},
    text={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2},
    tiny={"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(TINY, tmp_path_factory.mktemp("random") / "tiny")


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    return load_backbone(folder)


def test_latents_are_as_a_trained_encoders(backbone: Backbone) -> None:
    pixels = torch.from_numpy(fit(picture(128, 0), 128))[None]
    latents, sampled = backbone.encode(pixels), backbone.encode(pixels, torch.Generator())
    assert latents.shape == (1, 4, 16, 16)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), rtol=0.01, atol=0)
    assert float((latents - sampled).abs().max()) < 1e-2


def test_the_tiny_encoder_gives_the_same_shape(folder: Path) -> None:
    tiny = AutoencoderTiny.from_pretrained(folder / "tiny_vae")
    with torch.no_grad():
        assert tiny.encode(torch.rand(1, 3, 128, 128)).latents.shape == (1, 4, 16, 16)


def test_maps_have_peaks(backbone: Backbone) -> None:
    predictor = Predictor(random_segmenter(backbone, 6), backbone)
    cross_BPhw, self_BNN = predictor.full_maps(predictor.latents([picture(128, 0)]))
    assert float(cross_BPhw.max()) > 3 / 77  # all alike would be 1 / 77
    entropy = torch.special.entr(self_BNN).sum(-1).mean()
    assert float(entropy.exp()) < 256 / 2  # pixels attended to


def test_every_part_covers_its_share(backbone: Backbone) -> None:
    shares_K = shares(random_segmenter(backbone, 6), backbone, picture(128, 0))
    assert len(shares_K) == 6 and shares_K.min() >= LEAST_SHARE


def test_the_same_seed_gives_the_same_weights(folder: Path, tmp_path: Path, backbone: Backbone) -> None:
    assert load_backbone(write(TINY, tmp_path / "again")).hash == backbone.hash
    assert load_backbone(write(TINY, tmp_path / "other", seed=1)).hash != backbone.hash


def test_command_writes_a_segmenter_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SHAPES, "sd21", TINY)
    words = ["--like", "sd21", "--out", str(tmp_path / "out")]
    assert random_backbone.main(words) == 0
    assert "sd21, parts cover " in capsys.readouterr().out
    assert len(Segmenter.load(tmp_path / "out" / "segmenter").parts) == 6
    assert random_backbone.main(words) == 2
    assert "is not empty; give another --out" in capsys.readouterr().err


def _parameters(build: Any) -> int:
    return sum(each.numel() for each in bare(build).parameters())


def test_shapes_are_stable_diffusions() -> None:
    """As published; the KL encoder and the tiny one are the same for both."""
    unets = {name: _parameters(partial(UNet2DConditionModel, **shape.unet)) for name, shape in SHAPES.items()}
    assert unets == {"sd21": 865_910_724, "sd15": 859_520_964}
    assert _parameters(partial(AutoencoderKL, **SHAPES["sd21"].vae)) == 83_653_863
    assert _parameters(partial(AutoencoderTiny, **SHAPES["sd21"].tiny)) == 2_445_063
