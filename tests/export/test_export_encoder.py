"""Either encoder as an ONNX file: the same latents as PyTorch's, and nothing of what decodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch

import backbones
from slime_export.graph.networks import Encoder
from slime_export.graph.onnx_export import Signature, write
from slime_export.graph.runtimes import OnnxModel
from slime_export.options import ExportOptions
from slime_export.pipeline import export
from slime_optimize.backbone import Backbone, load_backbone
from slime_optimize.errors import BackboneError
from slime_optimize.segmenter import Segmenter
from slime_repository import layout
from slime_repository.errors import RepositoryError
from slime_was.tensors import LATENTS, PIXELS


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = backbones.build(tmp_path_factory.mktemp("encoders"))
    backbones.build_tiny(folder / "tiny_vae")
    return load_backbone(folder)


def traced(backbone: Backbone, encoder: str, folder: Path) -> Path:
    size, latent = backbone.image_size, backbone.latent_size
    signature = Signature(inputs={PIXELS: (3, size, size)}, outputs={LATENTS: (4, latent, latent)})
    return write(Encoder(backbone, encoder), signature, folder)


@pytest.mark.parametrize("encoder", ["vae", "tiny"])
def test_latents_are_pytorchs(backbone: Backbone, encoder: str, tmp_path: Path) -> None:
    path = traced(backbone, encoder, tmp_path)
    model = OnnxModel(path)
    for batch in (1, 3):
        pixels = torch.rand(batch, 3, 64, 64, generator=torch.Generator().manual_seed(batch)) * 2 - 1
        got = torch.from_numpy(model({PIXELS: pixels.numpy()})[LATENTS])
        expected = backbone.encode(pixels, encoder=encoder)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    kept = sum(len(each.raw_data) for each in onnx.load(str(path)).graph.initializer)
    encoding = sum(4 * each.numel() for each in backbone.encoder_model(encoder).encoder.parameters())
    assert kept < 1.2 * encoding + 1000


def test_a_backbone_without_one(backbone: Backbone, tmp_path: Path) -> None:
    plain = load_backbone(backbones.build(tmp_path))
    with pytest.raises(BackboneError, match="has no tiny_vae; give --encoder vae"):
        Encoder(plain, "tiny")


@pytest.mark.slow
def test_a_tiny_segmenter_is_served_with_its_own(make_segmenter: Callable[..., Path], tmp_path: Path) -> None:
    folder, repository = make_segmenter(tmp_path), tmp_path / "repository"
    elsewhere = backbones.build_tiny(tmp_path / "elsewhere")
    made = Segmenter.load(folder)
    name = load_backbone(made.backbone_id, tiny=str(elsewhere)).tiny_name("tiny")
    replace(made, settings=replace(made.settings, encoder="tiny"), tiny=name).save(folder)
    lines: list[str] = []
    export(ExportOptions(folder=folder, repository=repository), lines.append)
    assert any(line.startswith("tracing the tiny encoder: ") for line in lines)
    assert not (repository / "vae_encoder").exists()
    assert layout.pinned(repository / "car")["tiny_encoder"] == 1
    assert made.backbone_hash in layout.config_text(repository / "tiny_encoder")
    assert name is not None
    there = repository / "tiny_encoder" / "1"
    assert layout.encoder_of(repository, made.backbone_hash, "tiny_encoder", name.hash) == there
    with pytest.raises(
        RepositoryError, match=r"holds segmenters of tiny encoder .*; a repository holds one tiny encoder"
    ):
        layout.encoder_of(repository, made.backbone_hash, "tiny_encoder", "0" * 64)
    assert layout.encoder_of(repository, made.backbone_hash) is None  # a segmenter of the VAE may join
