"""A Stable Diffusion 1.x or 2.x in one file, `.safetensors` or `.ckpt`, made a folder in diffusers layout.

The file has the names that the original code gives its tensors. Nothing is fetched: the configurations are here, and
the tokenizer's vocabulary, which such a file does not hold, is taken from a folder beside it or one that is named.
Pickled files are read as tensors only (torch.load with weights_only).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slime_optimize.backbone_folder import load_models
from slime_optimize.backbone_hub import locate
from slime_optimize.backbone_weights import STEM
from slime_optimize.errors import BackboneError, first_line

PREDICTIONS = ("epsilon", "v_prediction")
SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth")
VOCABULARY = ("vocab.json", "merges.txt")
_FORMAT = 1  # of a converted folder in the cache; another number converts anew
_UNET, _VAE = "model.diffusion_model.", "first_stage_model."
# Text encoders, by the prefix of their tensors: OpenAI's CLIP in transformers' names, and OpenCLIP.
_TEXT = {"1.x": "cond_stage_model.transformer.", "2.x": "cond_stage_model.model."}

_LEVELS = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
_UNET_CONFIG = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": _LEVELS[0],
    "up_block_types": _LEVELS[1],
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
_VAE_CONFIG = {
    "_class_name": "AutoencoderKL",
    "sample_size": 512,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}
_TEXT_CONFIG = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}
# 2.x takes the text encoder's last layer but one, so that the last of its 24 is not there at all.
CONFIGS: dict[str, dict[str, dict[str, Any]]] = {
    "1.x": {"unet": _UNET_CONFIG, "vae": _VAE_CONFIG, "text_encoder": _TEXT_CONFIG},
    "2.x": {
        "unet": _UNET_CONFIG
        | {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
        "vae": _VAE_CONFIG,
        "text_encoder": _TEXT_CONFIG
        | {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 23,
            "num_attention_heads": 16,
            "hidden_act": "gelu",
        },
    },
}
_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
_PADDING = {"1.x": "<|endoftext|>", "2.x": "!"}


def is_single_file(name: str) -> bool:
    """Return whether `name` is a file that is there, which a checkpoint may be in."""
    path = Path(name).expanduser()
    return path.is_file() and path.suffix.lower() in SUFFIXES


def cached_folder(file: Path) -> Path:
    """Return the folder in diffusers layout that `file` was converted to, in the cache; convert it the first time.

    The cache is $SLIME_CACHE, or slime in $XDG_CACHE_HOME or ~/.cache. Another file, or one that was written again, is
    converted anew. Raises BackboneError as `convert`.
    """
    root = os.environ.get("SLIME_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slime"
    state, path = file.stat(), file.resolve()
    key = json.dumps([_FORMAT, str(path), state.st_size, state.st_mtime_ns, state.st_ino])
    folder = Path(root) / "checkpoints" / f"{path.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if not folder.is_dir():
        convert(file, folder)
    return folder


def convert(file: Path, out: Path, *, tokenizer: str | None = None, prediction: str | None = None) -> str:
    """Write the checkpoint in `file` into the folder `out`, which is there only when all of it could be loaded.

    `tokenizer` is a folder or hub id with the vocabulary, else it is looked for beside the file. `prediction` is what
    the UNet predicts, else what the file says, or epsilon for 1.x. Returns the version, 1.x or 2.x. Raises
    BackboneError for what is no such checkpoint, and where the vocabulary or the prediction is not known.
    """
    tensors, notes = _read(file)
    version = _version(file, tensors)
    predicts = prediction or _noted_prediction(file, version, tensors, notes)
    vocabulary = _vocabulary(file, tokenizer)
    configs = {part: dict(config) for part, config in CONFIGS[version].items()}
    configs["unet"]["in_channels"] = int(tensors[f"{_UNET}input_blocks.0.0.weight"].shape[1])
    if version == "2.x" and predicts == "v_prediction":  # trained on images of 768 pixels
        configs["unet"] |= {"sample_size": configs["unet"]["sample_size"] * 3 // 2, "upcast_attention": True}
    with _made_whole(out) as work:
        for part, stem in {"unet": STEM, "vae": STEM, "text_encoder": "model"}.items():
            _write(work / part / "config.json", configs[part])
            _save(work / part / f"{stem}.safetensors", _converted(file, part, version, tensors, configs[part]))
        zero_snr = {"rescale_betas_zero_snr": True} if "ztsnr" in tensors else {}
        _write(work / "scheduler" / "scheduler_config.json", _SCHEDULER | {"prediction_type": predicts} | zero_snr)
        words = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
        words |= {"tokenizer_class": "CLIPTokenizer", "pad_token": _PADDING[version]}
        _write(work / "tokenizer" / "tokenizer_config.json", words | {"model_max_length": 77})
        for name in VOCABULARY:
            shutil.copyfile(vocabulary / name, work / "tokenizer" / name)
        try:
            load_models(work, "cpu", torch.float32)
        except BackboneError as error:
            raise BackboneError(str(error).replace(str(work), str(file))) from error
    return version


def _read(file: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """Return the tensors of a checkpoint, and what it notes about itself. Nothing but tensors is ever unpickled."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        if file.suffix.lower() == ".safetensors":
            with safe_open(file, "pt") as opened:
                notes = opened.metadata() or {}
            return load_file(file), notes
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (SafetensorError, OSError, EOFError) as error:
        raise BackboneError(f"backbone {file}: not readable ({first_line(error)}); fetch the file again") from error
    except Exception as error:  # of unpickling: of every kind
        raise BackboneError(
            f"backbone {file}: holds more than tensors, or is damaged ({first_line(error)}); "
            "only tensors are read from pickled files: give the .safetensors of this checkpoint"
        ) from error
    while isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise BackboneError(
            f"backbone {file}: holds a {type(content).__name__}, expected a checkpoint's tensors by name"
        )
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}, {}


def _version(file: Path, tensors: Mapping[str, Tensor]) -> str:
    """Return 1.x or 2.x; BackboneError for anything that is not a whole checkpoint of either."""

    def has(prefix: str) -> bool:
        return any(key.startswith(prefix) for key in tensors)

    if has("conditioner.embedders."):
        reason = "is of SDXL's shape"
    elif any("lora_" in key or ".lora" in key for key in tensors):
        reason = "is an adapter (LoRA), not a whole checkpoint"
    else:
        parts = {
            "UNet": has(_UNET) and f"{_UNET}input_blocks.0.0.weight" in tensors,
            "VAE": has(_VAE),
            "text encoder": any(map(has, _TEXT.values())),
        }
        lacking = [part for part, there in parts.items() if not there]
        if not lacking:
            return next(version for version, prefix in _TEXT.items() if has(prefix))
        reason = f"has no {' and no '.join(lacking)}"
    raise BackboneError(
        f"backbone {file}: {reason}; expected Stable Diffusion 1.x or 2.x in one file, with "
        f"{_UNET}*, {_VAE}* and cond_stage_model.* tensors"
    )


def _noted_prediction(file: Path, version: str, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> str:
    """Return what the UNet predicts as far as the file says; BackboneError for a 2.x that does not."""
    noted = notes.get("modelspec.prediction_type", "").lower()
    architecture = notes.get("modelspec.architecture", "").lower()
    if "v_pred" in tensors or noted in ("v", "v_prediction") or architecture.startswith("stable-diffusion-v2-768"):
        return "v_prediction"
    if version == "1.x" or noted == "epsilon" or architecture.startswith("stable-diffusion-v2-512"):
        return "epsilon"
    raise BackboneError(
        f"backbone {file}: does not say whether this Stable Diffusion 2.x predicts the noise (the base models of 512 "
        f"pixels) or the velocity (those of 768); run: slime import-checkpoint {file} OUT --prediction "
        f"{' or '.join(PREDICTIONS)}, and give OUT as the backbone"
    )


def _vocabulary(file: Path, given: str | None) -> Path:
    """Return the folder with the tokenizer's vocabulary: the one `given`, else one beside the file."""
    if given:

        def choose(subject: str, names: list[str]) -> list[str]:
            return [name for name in names if name.removeprefix("tokenizer/") in VOCABULARY]

        folder, _ = locate(given, choose, "tokenizer", "")
        candidates = [folder, folder / "tokenizer"]
    else:
        candidates = [file.parent / file.stem / "tokenizer", file.parent / "tokenizer", file.parent]
    for folder in candidates:
        if all((folder / name).is_file() for name in VOCABULARY):
            return folder
    if given:
        raise BackboneError(f"tokenizer {given}: has no {' and '.join(VOCABULARY)}; expected a CLIP tokenizer's folder")
    raise BackboneError(
        f"backbone {file}: a checkpoint in one file has no tokenizer; put a folder tokenizer with CLIP's "
        f"{' and '.join(VOCABULARY)} beside it, or run: slime import-checkpoint {file} OUT --tokenizer "
        "FOLDER_OR_HUB_ID (such as openai/clip-vit-large-patch14), and give OUT as the backbone"
    )


def _converted(
    file: Path, part: str, version: str, tensors: dict[str, Tensor], config: dict[str, Any]
) -> dict[str, Tensor]:
    """Return one model's tensors under the names of diffusers or transformers; BackboneError for any left over."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    if part == "text_encoder":
        text = {
            key.removeprefix(_TEXT[version]): value for key, value in tensors.items() if key.startswith(_TEXT[version])
        }
        return _clip(text) if version == "1.x" else _open_clip(text, config["num_hidden_layers"])
    prefix = _UNET if part == "unet" else _VAE
    own = {key: value for key, value in tensors.items() if key.startswith((prefix, "model_ema."))}
    if part == "unet":
        # The averaged weights where there are both: they are the ones that images are made with.
        averaged = sum(key.startswith("model_ema.") for key in own) > 100
        made = convert_ldm_unet_checkpoint(own, config, extract_ema=averaged)
    else:
        own = {key: value for key, value in own.items() if key.startswith(prefix)}
        made = convert_ldm_vae_checkpoint(dict(own), config)
    wanted = sum(key.startswith(prefix) for key in own)
    empty = [key for key, value in made.items() if value is None]
    if empty or len(made) != wanted:
        what = (
            f"has no averaged weight for {empty[0]}"
            if empty
            else f"has {wanted} tensors, of which {len(made)} are known"
        )
        raise BackboneError(
            f"backbone {file}: its {part} {what}; expected Stable Diffusion {version} as published, or trained further"
        )
    return dict(made)


def _clip(text: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return CLIP's text encoder under the names that every release of transformers reads."""
    return {
        f"text_model.{key.removeprefix('text_model.')}": value
        for key, value in text.items()
        if not key.endswith(("position_ids", "text_projection.weight"))  # computed, and not used
    }


def _open_clip(text: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Return OpenCLIP's text encoder under CLIP's names, its first `layers` layers: q, k and v are one matrix there."""
    names = {
        "token_embedding": "embeddings.token_embedding",
        "positional_embedding": "embeddings.position_embedding.weight",
        "ln_final": "final_layer_norm",
        "transformer.resblocks": "encoder.layers",
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "attn": "self_attn",
        "c_fc": "fc1",
        "c_proj": "fc2",
    }
    made = {}
    for key, value in text.items():
        layer = re.match(r"transformer\.resblocks\.(\d+)\.", key)
        if key in ("text_projection", "logit_scale", "attn_mask") or (layer and int(layer[1]) >= layers):
            continue
        name = key
        for old, new in names.items():
            name = re.sub(rf"(?<![\w]){re.escape(old)}(?![\w])", new, name)
        joint = re.search(r"in_proj_(weight|bias)$", name)
        if joint:
            for letter, block in zip("qkv", value.chunk(3), strict=True):
                made[f"text_model.{name[: joint.start()]}{letter}_proj.{joint[1]}"] = block
        else:
            made[f"text_model.{name}"] = value
    return made


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    # Clones, because safetensors refuses views of one memory.
    save_file({key: value.clone().contiguous() for key, value in tensors.items()}, path, metadata={"format": "pt"})


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _made_whole(out: Path) -> Iterator[Path]:
    """Yield a folder beside `out`, which becomes `out` when all went well, and is removed when not."""
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield work
        work.chmod(0o755)
        try:
            work.rename(out)
        except OSError:
            if not out.is_dir() or not (out / "unet").is_dir():
                raise  # else another process has just made the same
    finally:
        shutil.rmtree(work, ignore_errors=True)
