"""Backbones: what loads, what it is identified by, and what is refused with which line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import backbones
from slime_optimize import Backbone, BackboneError, InputError, choose_device, load_backbone, preset
from slime_optimize.backbone import content_hash


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A folder of its own, to be spoilt."""
    return Path(shutil.copytree(folders["sd15"], tmp_path / "backbone"))


def test_sizes_and_identity(folders: dict[str, Path], loaded: dict[str, Backbone]) -> None:
    for kind, backbone in loaded.items():
        assert (backbone.image_size, backbone.latent_size) == (64, 16)
        assert backbone.id == str(folders[kind].resolve())
        assert backbone.hash == content_hash(folders[kind])
        assert backbone.predicts_velocity == (kind == "sd21")
        assert not any(p.requires_grad for p in backbone.unet.parameters())
    assert loaded["sd15"].hash != loaded["sd21"].hash


def test_hash_follows_weights(folder: Path) -> None:
    before = content_hash(folder)
    (folder / "README.md").write_text("not part of it")
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"another variant, not read")
    assert content_hash(folder) == before
    other = backbones.build(folder.parent / "other", "sd15", seed=1)
    assert content_hash(other) != before


def test_half_precision_weights_are_found(folder: Path) -> None:
    diffusers, transformers = "diffusion_pytorch_model", "model"
    for part, stem in (("unet", diffusers), ("vae", diffusers), ("text_encoder", transformers)):
        (folder / part / f"{stem}.safetensors").rename(folder / part / f"{stem}.fp16.safetensors")
    assert load_backbone(folder).dtype == torch.float32


def test_other_samplers_give_the_same_noise_levels(folder: Path, loaded: dict[str, Backbone]) -> None:
    backbones.edit_config(folder, "scheduler", _class_name="PNDMScheduler", skip_prk_steps=True)
    torch.testing.assert_close(load_backbone(folder).scheduler.alphas_cumprod, loaded["sd15"].scheduler.alphas_cumprod)


def test_noise_and_target_match_diffusers(backbone: Backbone) -> None:
    latents, noise = torch.randn(2, 2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    steps = torch.tensor([5, 700])
    scheduler = backbone.scheduler
    torch.testing.assert_close(backbone.add_noise(latents, noise, steps), scheduler.add_noise(latents, noise, steps))
    torch.testing.assert_close(
        backbone.add_noise(latents, noise, torch.tensor(5))[0], scheduler.add_noise(latents, noise, steps)[0]
    )
    target = scheduler.get_velocity(latents, noise, steps) if backbone.predicts_velocity else noise
    torch.testing.assert_close(backbone.target(latents, noise, steps), target)


def test_encoding_is_the_posteriors_mean(backbone: Backbone) -> None:
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = backbone.encode(pixels)
    assert latents.shape == (2, 4, 16, 16)
    assert torch.equal(latents, backbone.encode(pixels))
    torch.testing.assert_close(latents, backbone.vae.encode(pixels).latent_dist.mode() * 0.5)


def test_prompt_fills_all_tokens(backbone: Backbone) -> None:
    text = backbone.encode_text(" ".join(["part"] * 77))
    assert text.shape == (1, 77, backbone.text_width)


def test_recommended_settings_override_the_preset(folder: Path) -> None:
    (folder / "slime.json").write_text(
        json.dumps({"every": {"t_test": 150, "t_opt": [5, 300]}, "paper": {"t_test": 200}})
    )
    settings = preset("paper", load_backbone(folder).recommended)
    assert (settings.t_test, settings.t_opt, settings.learning_rate) == (200, (5, 300), 0.1)
    assert preset("best", load_backbone(folder).recommended).t_test == 150
    with pytest.raises(InputError, match=r"slime\.json: unknown setting 't_tset'"):
        preset("paper", {"every": {"t_tset": 1}})
    with pytest.raises(InputError, match=r"slime\.json: got 't_test', expected settings under every, best"):
        preset("paper", {"t_test": 1})


@pytest.mark.parametrize("name", ["/no/such/folder", "./nowhere", "a/b/c"])
def test_missing_folder(name: str) -> None:
    with pytest.raises(BackboneError, match="no such folder"):
        load_backbone(name)


@pytest.mark.parametrize("name", ["someone/not-cached", "nonsense", "bad id!"])
def test_hub_id_without_a_network(name: str) -> None:
    with pytest.raises(BackboneError, match="neither a folder nor a hub id") as caught:
        load_backbone(name)
    assert "\n" not in str(caught.value)


REFUSED: dict[str, tuple[str, dict[str, object]]] = {
    "UNet is a SD3Transformer2DModel": ("unet", {"_class_name": "SD3Transformer2DModel"}),
    "VAE is a AutoencoderTiny": ("vae", {"_class_name": "AutoencoderTiny"}),
    "as SDXL": ("unet", {"addition_embed_type": "text_time"}),
    "class labels": ("unet", {"class_embed_type": "timestep"}),
    "takes 9 channels": ("unet", {"in_channels": 9}),
    "latent size or text width": ("unet", {"cross_attention_dim": [24, 24]}),
    "16 latent channels": ("vae", {"latent_channels": 16}),
    "text encoder is 99 wide": ("text_encoder", {"hidden_size": 99}),
    "holds 64 tokens": ("text_encoder", {"max_position_embeddings": 64}),
    "predicts sample": ("scheduler", {"prediction_type": "sample"}),
    "normalises or gates": ("unet", {"only_cross_attention": True}),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_other_shapes_are_refused(folder: Path, reason: str) -> None:
    part, changes = REFUSED[reason]
    backbones.edit_config(folder, part, **changes)
    with pytest.raises(BackboneError, match=reason) as caught:
        load_backbone(folder)
    assert "\n" not in str(caught.value)


def test_incomplete_folders_are_refused(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BackboneError, match="cannot be loaded"):
        load_backbone(folder)
    weights.unlink()
    with pytest.raises(BackboneError, match=r"has no unet/diffusion_pytorch_model\.safetensors"):
        load_backbone(folder)
    (folder / "vae" / "config.json").write_text("{")
    with pytest.raises(BackboneError, match="not readable JSON"):
        load_backbone(folder)
    shutil.rmtree(folder / "vae")
    with pytest.raises(BackboneError, match=r"has no vae/config\.json"):
        load_backbone(folder)


def test_devices() -> None:
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type in ("cpu", "cuda")
    with pytest.raises(BackboneError, match="device 'gpu'"):
        choose_device("gpu")
