"""Checkpoints in one file, under the names that the original code of Stable Diffusion gives its tensors."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from slime_optimize import BackboneError, load_backbone, single_file
from slime_optimize.commands.import_checkpoint import main

PARTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0"}
RESNET |= {"conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
Tensors = dict[str, Tensor]


def tensors_of(folder: Path, part: str) -> Tensors:
    return load_file(folder / part / f"{PARTS[part]}.safetensors")


def unet_name(key: str) -> str:
    """The original name of a UNet's tensor: blocks are counted through, two layers and a resampling to a level."""
    ends = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
    ends |= {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    stem, _, kind = key.rpartition(".")
    if stem in ends:
        return f"{ends[stem]}.{kind}"
    words = key.split(".")
    if words[0] == "mid_block":
        block = "middle_block." + ("1" if words[1] == "attentions" else str(2 * int(words[2])))
        rest = words[3:]
    else:
        level, layer = int(words[1]), int(words[3])
        down = words[0] == "down_blocks"
        if words[2] == "downsamplers":
            return f"input_blocks.{3 * (level + 1)}.0.op.{kind}"
        if words[2] == "upsamplers":
            return f"output_blocks.{3 * level + 2}.{1 if level == 0 else 2}.conv.{kind}"
        number = 3 * level + layer + (1 if down else 0)
        block = f"{'input' if down else 'output'}_blocks.{number}.{1 if words[2] == 'attentions' else 0}"
        rest = words[4:]
    if rest[0] in RESNET and "attentions" not in words:
        rest[0] = RESNET[rest[0]]
    return ".".join([block, *rest])


def vae_name(key: str, levels: int) -> str:
    key = re.sub(r"decoder\.up_blocks\.(\d)", lambda found: f"decoder.up.{levels - 1 - int(found[1])}", key)
    key = re.sub(r"encoder\.down_blocks", "encoder.down", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", key)
    names = {".resnets.": ".block.", "samplers.0.conv": "sample.conv", "mid_block.attentions.0": "mid.attn_1"}
    names |= {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    names |= {"conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut"}
    for new, old in names.items():
        key = key.replace(new, old)
    return key


def open_clip(text: Tensors) -> Tensors:
    """OpenCLIP's tensors: q, k and v in one, and another layer, a projection and a scale that are not used."""
    names = {"embeddings.token_embedding": "token_embedding", "final_layer_norm": "ln_final"}
    names |= {"embeddings.position_embedding.weight": "positional_embedding", "encoder.layers": "transformer.resblocks"}
    names |= {"self_attn": "attn", "layer_norm1": "ln_1", "layer_norm2": "ln_2", "fc1": "c_fc", "fc2": "c_proj"}
    made = {}
    for key, value in text.items():
        name = key
        for new, old in names.items():
            name = name.replace(new, old)
        if "q_proj" in name:
            joint = torch.cat([text[key.replace("q_proj", f"{letter}_proj")] for letter in "qkv"])
            made[name.replace("q_proj.", "in_proj_")] = joint
        elif "k_proj" not in name and "v_proj" not in name:
            made[name] = value
    last = {key.replace("resblocks.0", "resblocks.1"): value * 2 for key, value in made.items() if "resblocks" in key}
    return made | last | {"text_projection": torch.ones(3, 3), "logit_scale": torch.tensor(1.0)}


def one_file(folder: Path, kind: str) -> Tensors:
    """The tensors of a backbone under their original names."""
    levels = len(json.loads((folder / "vae" / "config.json").read_text())["block_out_channels"])
    made = {f"model.diffusion_model.{unet_name(key)}": value for key, value in tensors_of(folder, "unet").items()}
    for key, value in tensors_of(folder, "vae").items():
        attention = "attentions" in key and "group_norm" not in key and value.ndim == 2
        made[f"first_stage_model.{vae_name(key, levels)}"] = value[:, :, None, None].clone() if attention else value
    text = tensors_of(folder, "text_encoder")
    if kind == "sd15":
        made |= {f"cond_stage_model.transformer.text_model.{key}": value for key, value in text.items()}
        made["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
        made["cond_stage_model.transformer.text_projection.weight"] = torch.ones(3, 3)
    else:
        made |= {f"cond_stage_model.model.{key}": value for key, value in open_clip(text).items()}
    return made | {"alphas_cumprod": torch.ones(1000), "model_ema.decay": torch.tensor(0.9)}


@pytest.fixture(autouse=True)
def tiny_configs(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The configurations of the tests' backbones in place of Stable Diffusion's, and a cache of its own."""
    for version, kind in {"1.x": "sd15", "2.x": "sd21"}.items():
        configs = {part: json.loads((folders[kind] / part / "config.json").read_text()) for part in PARTS}
        monkeypatch.setitem(single_file.CONFIGS, version, configs)
    monkeypatch.setenv("SLIME_CACHE", str(tmp_path / "cache"))


def write(path: Path, tensors: Tensors, tokenizer: Path | None, **notes: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".ckpt":
        torch.save({"state_dict": tensors, "global_step": 3}, path)
    else:
        save_file({key: value.contiguous().clone() for key, value in tensors.items()}, path, metadata=notes or None)
    if tokenizer:
        shutil.copytree(tokenizer, path.parent / "tokenizer", dirs_exist_ok=True)
    return path


def assert_same_weights(converted: Path, source: Path) -> None:
    for part in PARTS:
        made = {key.removeprefix("text_model."): value for key, value in tensors_of(converted, part).items()}
        expected = tensors_of(source, part)
        assert made.keys() == expected.keys()
        assert all(torch.equal(made[key], value) for key, value in expected.items())


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_one_file_is_the_folder_it_holds(folders: dict[str, Path], tmp_path: Path, suffix: str) -> None:
    source = folders["sd15"]
    file = write(tmp_path / "models" / f"v1-5{suffix}", one_file(source, "sd15"), source / "tokenizer")
    backbone, expected = load_backbone(file), load_backbone(source)
    assert backbone.id == str(file)
    assert torch.equal(backbone.encode_text("a part"), expected.encode_text("a part"))
    assert not backbone.predicts_velocity
    torch.testing.assert_close(backbone.scheduler.alphas_cumprod, expected.scheduler.alphas_cumprod)
    [converted] = (tmp_path / "cache" / "checkpoints").iterdir()
    assert_same_weights(converted, source)


def test_the_cache_follows_the_file(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folders["sd15"]
    tensors = one_file(source, "sd15")
    file = write(tmp_path / "v1.safetensors", tensors, source / "tokenizer")
    first = load_backbone(file).hash
    with monkeypatch.context() as patch:
        patch.setattr(single_file, "convert", lambda *_, **__: pytest.fail("converted again"))
        assert load_backbone(file).hash == first
    tensors["model.diffusion_model.out.2.bias"] += 1
    write(file, tensors, None)
    assert load_backbone(file).hash != first


def test_averaged_weights_are_taken_where_there_are_both(folders: dict[str, Path], tmp_path: Path) -> None:
    source, prefix = folders["sd15"], "model.diffusion_model."
    tensors = one_file(source, "sd15")
    averaged = {
        f"model_ema.{key.replace('model.', '', 1).replace('.', '')}": v for key, v in tensors.items() if prefix in key
    }
    noisy = {key: value + 1 if key.startswith(prefix) else value for key, value in tensors.items()}
    file = write(tmp_path / "both.safetensors", noisy | averaged, source / "tokenizer")
    single_file.convert(file, tmp_path / "out")
    assert_same_weights(tmp_path / "out", source)


def test_second_version(folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = folders["sd21"]
    tensors = one_file(source, "sd21")
    file = write(tmp_path / "v2.safetensors", tensors, None)
    tokenizer = ["--tokenizer", str(source / "tokenizer")]
    assert main([str(file), str(tmp_path / "unknown"), *tokenizer]) == 2
    assert "--prediction epsilon or v_prediction" in capsys.readouterr().err
    assert not (tmp_path / "unknown").exists()
    for prediction, size in {"epsilon": 64, "v_prediction": 96}.items():
        out = tmp_path / prediction
        assert main([str(file), str(out), *tokenizer, "--prediction", prediction]) == 0
        assert f"give it as --backbone {out}" in capsys.readouterr().out
        backbone = load_backbone(out)
        assert (backbone.image_size, backbone.predicts_velocity) == (size, prediction == "v_prediction")
        assert backbone.tokenizer.pad_token == "!"
        assert_same_weights(out, source)
    noted = write(tmp_path / "noted.safetensors", tensors, None, **{"modelspec.prediction_type": "v"})
    single_file.convert(noted, tmp_path / "noted", tokenizer=str(source))
    assert load_backbone(tmp_path / "noted").predicts_velocity


def without(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: value for key, value in tensors.items() if not key.startswith(part)}


UNET_OUT = "model.diffusion_model.out.2.bias"
WRONG: dict[str, Callable[[Tensors], Tensors]] = {
    "has no VAE": without("first_stage_model."),
    "has no text encoder;": without("cond_stage_model."),
    "has no UNet and no VAE and no text encoder": lambda _: {"weights": torch.ones(3)},
    "is of SDXL's shape": lambda tensors: tensors | {"conditioner.embedders.0.x": torch.ones(3)},
    "is an adapter": lambda _: {"lora_unet_down_blocks_0.lora_up.weight": torch.ones(3)},
    r"v1\.safetensors: its UNet takes 9 channels": lambda tensors: (
        tensors | {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(8, 9, 3, 3)}
    ),
    r"v1\.safetensors: unet/\S+ lacks conv_out.bias;": without(UNET_OUT),
    r"v1\.safetensors: unet/\S+ conv_out.bias holds NaN": lambda tensors: (
        tensors | {UNET_OUT: torch.full((4,), torch.nan)}
    ),
    r"v1\.safetensors: text_encoder/\S+ lacks final_layer_norm.bias;": without(
        "cond_stage_model.transformer.text_model.final_layer_norm.bias"
    ),
    r"its unet has \d+ tensors, of which \d+ are known": lambda tensors: (
        tensors | {"model.diffusion_model.label_emb.0.0.weight": torch.ones(3)}
    ),
}


@pytest.mark.parametrize("reason", WRONG)
def test_other_files_are_refused(folders: dict[str, Path], tmp_path: Path, reason: str) -> None:
    tensors = WRONG[reason](one_file(folders["sd15"], "sd15"))
    file = write(tmp_path / "v1.safetensors", tensors, folders["sd15"] / "tokenizer")
    with pytest.raises(BackboneError, match=reason) as caught:
        load_backbone(file)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


class Evil:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return (Path.touch, (self.witness,))


def test_pickles_run_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "v1.ckpt"
    for save in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
        save({"state_dict": one_file(folders["sd15"], "sd15"), "callback": Evil(tmp_path / "witness")}, file)
        with pytest.raises(BackboneError, match="only tensors are read from pickled files"):
            load_backbone(file)
    assert not (tmp_path / "witness").exists()
    (tmp_path / "cut.safetensors").write_bytes(b"\x08")
    with pytest.raises(BackboneError, match="not readable"):
        load_backbone(tmp_path / "cut.safetensors")


def test_a_vocabulary_is_asked_for(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "v1.safetensors", one_file(folders["sd15"], "sd15"), None)
    with pytest.raises(
        BackboneError, match=r"has no tokenizer; put a folder tokenizer .* or run: slime import-checkpoint"
    ):
        load_backbone(file)
    assert main([str(file), str(tmp_path / "out"), "--tokenizer", str(tmp_path)]) == 2
    assert "has no vocab.json and merges.txt" in capsys.readouterr().err
    for name in single_file.VOCABULARY:
        shutil.copy(folders["sd15"] / "tokenizer" / name, tmp_path)
    assert load_backbone(file).image_size == 64


def test_the_command_refuses_what_is_there(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = folders["sd15"]
    for file, reason in {folder / "none.ckpt": "no such file", folder: "is not a checkpoint in one file"}.items():
        assert main([str(file), str(folder / "out")]) == 2
        assert reason in capsys.readouterr().err
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    assert main([str(file), str(folder)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_the_configurations_are_those_of_stable_diffusion(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of parameters of the published models, in millions."""
    monkeypatch.undo()
    counts = {"1.x": (859.52, 83.65, 123.06), "2.x": (865.91, 83.65, 340.39)}
    for version, expected in counts.items():
        configs = single_file.CONFIGS[version]
        with torch.device("meta"):
            models = (
                UNet2DConditionModel.from_config(configs["unet"]),
                AutoencoderKL.from_config(configs["vae"]),
                CLIPTextModel(CLIPTextConfig(**configs["text_encoder"])),
            )
        millions = [sum(weight.numel() for weight in model.parameters()) / 1e6 for model in models]
        assert millions == pytest.approx(expected, abs=0.01)
