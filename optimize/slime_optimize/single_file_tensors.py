"""What is in a checkpoint of Stable Diffusion 1.x or 2.x in one file, and its tensors under the names of diffusers.

The file has the names that the original code gives its tensors; the configurations that it does not hold are here.
Pickled files are read as tensors only (torch.load with weights_only).
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slime_optimize.errors import BackboneError, first_line

PREDICTIONS = ("epsilon", "v_prediction")
UNET, _VAE = "model.diffusion_model.", "first_stage_model."
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


def read_file(file: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
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


def version_of(file: Path, tensors: Mapping[str, Tensor]) -> str:
    """Return 1.x or 2.x; BackboneError for anything that is not a whole checkpoint of either."""

    def has(prefix: str) -> bool:
        return any(key.startswith(prefix) for key in tensors)

    if has("conditioner.embedders."):
        reason = "is of SDXL's shape"
    elif any("lora_" in key or ".lora" in key for key in tensors):
        reason = "is an adapter (LoRA), not a whole checkpoint"
    else:
        parts = {
            "UNet": has(UNET) and f"{UNET}input_blocks.0.0.weight" in tensors,
            "VAE": has(_VAE),
            "text encoder": any(map(has, _TEXT.values())),
        }
        lacking = [part for part, there in parts.items() if not there]
        if not lacking:
            return next(version for version, prefix in _TEXT.items() if has(prefix))
        reason = f"has no {' and no '.join(lacking)}"
    raise BackboneError(
        f"backbone {file}: {reason}; expected Stable Diffusion 1.x or 2.x in one file, with "
        f"{UNET}*, {_VAE}* and cond_stage_model.* tensors"
    )


def noted_prediction(file: Path, version: str, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> str:
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


def converted(
    file: Path, part: str, version: str, tensors: dict[str, Tensor], config: dict[str, Any]
) -> dict[str, Tensor]:
    """Return one model's tensors under the names of diffusers or transformers; BackboneError for any left over."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    if part == "text_encoder":
        text = {
            key.removeprefix(_TEXT[version]): value for key, value in tensors.items() if key.startswith(_TEXT[version])
        }
        return _clip(text) if version == "1.x" else _open_clip(text, config["num_hidden_layers"])
    prefix = UNET if part == "unet" else _VAE
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
