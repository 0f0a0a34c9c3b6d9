"""Backbones: what loads, what it is identified by, and what is refused with which line."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from huggingface_hub.errors import RevisionNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor

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


@pytest.mark.parametrize("name", ["/no/such/folder", "./nowhere", "a/b/c", "v1-5.safetensors", "me/sd.ckpt"])
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
    "predicts flow_prediction": ("scheduler", {"prediction_type": "flow_prediction"}),
    "a FlowMatchEulerDiscreteScheduler, has no beta_start": (
        "scheduler",
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "beta_start": None},
    ),
    "follows flows": ("scheduler", {"use_flow_sigmas": True}),
    "has 100 timesteps": ("scheduler", {"num_train_timesteps": 100}),
    "text encoder is a bert": ("text_encoder", {"model_type": "bert"}),
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


Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]
UNET, VAE, TEXT = "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"


def change_weights(folder: Path, name: str, change: Change) -> None:
    path = folder / f"{name}.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def spoilt(key: str, value: float) -> Change:
    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors[key].view(-1)[-1] = value
        return tensors

    return change


WRONG_WEIGHTS: dict[str, tuple[str, Change]] = {
    # An adapter that was not merged renames the layers it changes.
    r"unet/\S+ lacks .*to_q.weight and \d+ more and has unexpected .*base_layer": (
        UNET,
        lambda weights: {key.replace("to_q.weight", "to_q.base_layer.weight"): w for key, w in weights.items()},
    ),
    r"text_encoder/model.safetensors: lacks embeddings.* has unexpected cond_stage_model": (
        TEXT,
        lambda weights: {f"cond_stage_model.transformer.{key}": weight for key, weight in weights.items()},
    ),
    r"vae/\S+ lacks decoder.conv_in.weight;": (
        VAE,
        lambda weights: {key: w for key, w in weights.items() if key != "decoder.conv_in.weight"},
    ),
    "has unexpected text_projection.weight": (
        TEXT,
        lambda weights: weights | {"text_projection.weight": torch.ones(3)},
    ),
    "vae.*has unexpected extra": (VAE, lambda weights: weights | {"extra": torch.ones(3)}),
    "tiny_vae/.*lacks encoder.layers.0.weight": (
        "tiny_vae/diffusion_pytorch_model",
        lambda weights: {key: w for key, w in weights.items() if key != "encoder.layers.0.weight"},
    ),
    r"final_layer_norm.bias has shape \[3\], not \[24\]": (
        TEXT,
        lambda weights: weights | {"final_layer_norm.bias": torch.ones(3)},
    ),
    r"conv_in.bias expected shape torch.Size\(\[8\]\)": (
        UNET,
        lambda weights: weights | {"conv_in.bias": torch.ones(3)},
    ),
    r"unet/\S+ conv_in.bias holds NaN or infinity as float32": (UNET, spoilt("conv_in.bias", math.nan)),
    r"vae/\S+ decoder.conv_out.weight holds NaN": (VAE, spoilt("decoder.conv_out.weight", math.inf)),
    r"text_encoder/\S+ final_layer_norm.bias holds NaN": (TEXT, spoilt("final_layer_norm.bias", -math.inf)),
    r"tiny_vae/\S+ encoder.layers.0.bias holds NaN": (
        "tiny_vae/diffusion_pytorch_model",
        spoilt("encoder.layers.0.bias", math.nan),
    ),
}


@pytest.mark.parametrize("reason", WRONG_WEIGHTS)
def test_weights_that_are_not_all_the_models_are_refused_by_name(
    folder: Path, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    backbones.build_tiny(folder / "tiny_vae")
    load_backbone(folder)
    change_weights(folder, *WRONG_WEIGHTS[reason])
    capfd.readouterr()
    with pytest.raises(BackboneError, match=reason) as caught:
        load_backbone(folder)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # the line says it all


def test_weights_too_large_for_half_precision_are_refused(folder: Path) -> None:
    change_weights(folder, UNET, spoilt("conv_in.bias", 1e6))
    load_backbone(folder)
    with pytest.raises(BackboneError, match=r"conv_in.bias holds NaN or infinity as float16"):
        load_backbone(folder, dtype=torch.float16)


def test_names_of_older_releases_are_the_same_weights(folder: Path, loaded: dict[str, Backbone]) -> None:
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(key: str) -> str:
        for new, name in old.items():
            key = key.replace(f".{new}.", f".{name}.")
        return key

    change_weights(folder, VAE, lambda weights: {rename(key): weight for key, weight in weights.items()})
    positions = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    change_weights(
        folder, TEXT, lambda weights: {f"text_model.{key}": weight for key, weight in weights.items()} | positions
    )
    again = load_backbone(folder)
    assert torch.equal(again.encode_text("part"), loaded["sd15"].encode_text("part"))
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(again.encode(pixels), loaded["sd15"].encode(pixels))


def test_vocabularies_that_are_not_the_text_encoders_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = folder / "tokenizer"
    words = json.loads((tokenizer / "vocab.json").read_text())
    (tokenizer / "vocab.json").write_text(json.dumps(words | {"zz</w>": 64}))
    with pytest.raises(BackboneError, match="its tokenizer has 65 tokens, its text encoder 64"):
        load_backbone(folder)
    (tokenizer / "vocab.json").write_text(json.dumps({"<|startoftext|>": 0, "<|endoftext|>": 1}))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(BackboneError, match="does not know the letter a"):
        load_backbone(folder)
    (tokenizer / "merges.txt").unlink()
    with pytest.raises(BackboneError, match=r"has no tokenizer/merges\.txt"):
        load_backbone(folder)
    shutil.rmtree(tokenizer)
    monkeypatch.chdir(tmp_path)
    for name in (str(folder), folder.name):
        with pytest.raises(BackboneError, match=r"has no tokenizer/vocab\.json; copy the folder tokenizer"):
            load_backbone(name)


def rename_weights(folder: Path, variant: str) -> None:
    for name in (UNET, VAE, TEXT):
        (folder / f"{name}.safetensors").rename(folder / f"{name}{variant}.safetensors")


def shard(folder: Path, name: str, variant: str = "") -> None:
    """Split weights into two files and an index, under the names that save_pretrained gives them."""
    whole = folder / f"{name}.safetensors"
    tensors, listed = load_file(whole), {}
    for number in (1, 2):
        path = whole.with_name(f"{whole.stem}{variant}-0000{number}-of-00002.safetensors")
        part = {key: tensor for key, tensor in tensors.items() if (len(key) % 2 == 0) == (number == 1)}
        save_file(part, path, metadata={"format": "pt"})
        listed |= dict.fromkeys(part, path.name)
    index = whole.with_name(f"{whole.stem}.safetensors.index{variant}.json")
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": listed}))
    whole.unlink()


class OfflineError(Exception):
    """Some error of the hub's client, which is none of Python's own."""


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str | None, list[str]]]:
    """A hub whose every repository holds `folder`: the revision and the names of each fetch, into an empty cache."""
    fetches: list[tuple[str | None, list[str]]] = []

    def names() -> list[str]:
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

    def model_info(self: object, repository: str, *, revision: str | None = None) -> SimpleNamespace:
        if revision == "nowhere":
            raise RevisionNotFoundError.__new__(RevisionNotFoundError)
        if revision == "offline":
            raise OfflineError("no route\nto the hub")
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names()])

    def snapshot_download(
        repository: str,
        *,
        revision: str | None = None,
        allow_patterns: Sequence[str] = (),
        local_files_only: bool = False,
    ) -> str:
        if local_files_only:
            if not (tmp_path / "cache").is_dir():
                raise FileNotFoundError("call it with local_files_only=False")
            return str(tmp_path / "cache")
        fetches.append((revision, [name for name in names() if name in allow_patterns]))
        cache = tmp_path / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        for name in fetches[-1][1]:
            (cache / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / name, cache / name)
        return str(cache)

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return fetches


Hub = list[tuple[str | None, list[str]]]


@pytest.mark.parametrize("form", ["plain", "fp16", "bf16", "shards", "shards of fp16"])
def test_what_is_fetched_is_what_is_read(folder: Path, hub: Hub, form: str) -> None:
    expected = {"plain": "", "fp16": ".fp16", "bf16": ".bf16"}.get(form, "")
    if form.startswith("shards"):
        for name in (UNET, VAE, TEXT):
            shard(folder, name, ".fp16" if "fp16" in form else "")
    else:
        rename_weights(folder, expected)
    here = load_backbone(folder)
    (folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors").write_bytes(b"not read, not fetched")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"not read, not fetched")
    if form == "plain":
        shutil.copy(folder / f"{UNET}.safetensors", folder / f"{UNET}.fp16.safetensors")
    fetched = load_backbone("me/sd")
    assert (fetched.hash, fetched.id) == (here.hash, "me/sd")
    [(revision, names)] = hub
    assert revision is None
    weights = [name for name in names if name.endswith(".safetensors")]
    assert len(weights) == (6 if form.startswith("shards") else 3)
    assert not any("non_ema" in name or name.endswith(".bin") for name in names)


def test_revisions(hub: Hub) -> None:
    for name, revision in {"me/sd@fp16": "fp16", "me/sd@refs/pr/3": "refs/pr/3"}.items():
        assert load_backbone(name).id == name
        assert hub[-1][0] == revision
    with pytest.raises(BackboneError, match="the hub has me/sd, but no revision 'nowhere'"):
        load_backbone("me/sd@nowhere")


def test_without_a_network_what_was_fetched_before_is_read(hub: Hub) -> None:
    with pytest.raises(BackboneError, match=r"can be fetched \(no route\); expected"):
        load_backbone("me/sd@offline")
    load_backbone("me/sd")
    assert load_backbone("me/sd@offline").id == "me/sd@offline"
    assert len(hub) == 1


@pytest.mark.parametrize("variant", ["", ".fp16"])
@pytest.mark.parametrize("shards", [False, True])
def test_pickled_weights(folder: Path, loaded: dict[str, Backbone], hub: Hub, variant: str, shards: bool) -> None:
    """The UNet and the VAE as diffusers pickles them, the text encoder as transformers did, which no longer does."""
    for kind, name in ((UNet2DConditionModel, UNET), (AutoencoderKL, VAE)):
        model = kind.from_pretrained((folder / name).parent)
        (folder / f"{name}.safetensors").unlink()
        model.save_pretrained(
            (folder / name).parent,
            safe_serialization=False,
            variant=variant.removeprefix(".") or None,
            max_shard_size="100KB" if shards else "1GB",
        )
    tensors = load_file(folder / f"{TEXT}.safetensors")
    (folder / f"{TEXT}.safetensors").unlink()
    torch.save(tensors, (folder / TEXT).with_name(f"pytorch_model{variant}.bin"))
    here = load_backbone(folder)
    for one, other in ((here.unet, loaded["sd15"].unet), (here.vae, loaded["sd15"].vae)):
        assert all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())
    assert torch.equal(here.encode_text("part"), loaded["sd15"].encode_text("part"))
    assert load_backbone("me/sd").hash == here.hash
    [(_, names)] = hub
    assert len([name for name in names if name.endswith(".bin")]) > (6 if shards else 2)


class Mischief:
    """Makes a file where it is unpickled as any object."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", [UNET, "text_encoder/pytorch_model"])
def test_pickles_that_run_code_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / (TEXT if name.startswith("text") else UNET)).with_suffix(".safetensors").unlink()
    (folder / f"{name}.bin").write_bytes(pickle.dumps(Mischief(tmp_path / "made")))
    with pytest.raises(BackboneError, match=rf"{name}\.bin: its weights cannot be loaded"):
        load_backbone(folder)
    assert not (tmp_path / "made").exists()


def test_a_shard_that_is_missing_is_named(folder: Path) -> None:
    shard(folder, UNET)
    (folder / f"{UNET}-00001-of-00002.safetensors").unlink()
    with pytest.raises(BackboneError, match=r"index.json: shard 1 of 2 is not there"):
        load_backbone(folder)


def test_paths_are_never_looked_up(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for name in ("./sd", "sd", "models/sd", "models/sd/fp16", "sd.safetensors", "me/sd.ckpt", "~/sd", "..\\sd"):
        with pytest.raises(BackboneError, match=r"no such|nor a hub id"):
            load_backbone(name)
    with pytest.raises(BackboneError, match="the hub's models/sd is models/sd@main"):
        load_backbone("models/sd")
    assert hub == []
    load_backbone("models/sd@main")
    assert len(hub) == 1


def test_devices() -> None:
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type in ("cpu", "cuda")
    with pytest.raises(BackboneError, match="device 'gpu'"):
        choose_device("gpu")
