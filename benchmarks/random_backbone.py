"""Backbones of Stable Diffusion's exact shapes with random weights, in diffusers layout: for what speed and memory are.

    python -m benchmarks.random_backbone sd21 FOLDER

Written in seconds: models are made without memory and then filled layer by layer, instead of by their own slow start.
Each layer keeps its input's scale, but queries and keys are enlarged, so that attention has peaks as a trained one's.
"""

from __future__ import annotations

import argparse
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from slime_optimize.backbone import embedded_folder

_PEAKED = ("to_q.weight", "to_k.weight")
_SHARPER = 2.0  # of queries and keys each: scores then spread by 4


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Arguments of the three models, beyond what diffusers and transformers take by themselves."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text: Mapping[str, Any]


_VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
_CHANNELS: dict[str, Any] = {"sample_size": 64, "block_out_channels": (320, 640, 1280, 1280)}

SHAPES = {
    "sd21": Shape(
        unet={
            **_CHANNELS,
            "attention_head_dim": (5, 10, 20, 20),
            "cross_attention_dim": 1024,
            "use_linear_projection": True,
        },
        vae=_VAE,
        text={
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 23,
            "num_attention_heads": 16,
            "hidden_act": "gelu",
        },
    ),
    "sd15": Shape(
        unet={**_CHANNELS, "attention_head_dim": 8, "cross_attention_dim": 768},
        vae=_VAE,
        text={"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    ),
}


def write(shape: Shape, folder: Path, seed: int = 0) -> Path:
    """A whole backbone of `shape` in `folder`, one model in memory at a time; the same seed gives the same weights."""
    chance = torch.Generator().manual_seed(seed)
    builders: dict[str, Callable[[], Any]] = {
        "unet": lambda: UNet2DConditionModel(**shape.unet),
        "vae": lambda: AutoencoderKL(**shape.vae),
        "text_encoder": lambda: CLIPTextModel(CLIPTextConfig(max_position_embeddings=77, **shape.text)),
    }
    for name, build in builders.items():
        _filled(bare(build), chance).save_pretrained(folder / name)
    DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(
        folder / "scheduler"
    )
    shutil.copytree(embedded_folder() / "tokenizer", folder / "tokenizer")  # its ids are few, and all known
    return folder


def bare(build: Callable[[], Any]) -> Any:
    """What `build` makes, without memory for its weights."""
    with torch.device("meta"):
        return build()


def _filled(model: Any, chance: torch.Generator) -> Any:
    model.to_empty(device="cpu")
    norms = {id(each.weight) for each in model.modules() if isinstance(each, nn.GroupNorm | nn.LayerNorm)}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            _fill(name, weight, id(weight) in norms, chance)
    return model


def _fill(name: str, weight: Tensor, scales: bool, chance: torch.Generator) -> None:
    if weight.ndim < 2:
        weight.fill_(1.0 if scales else 0.0)
        return
    sharper = _SHARPER if name.endswith(_PEAKED) else 1.0
    weight.normal_(0.0, sharper / math.sqrt(weight[0].numel()), generator=chance)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    write(SHAPES[options.shape], options.folder)


if __name__ == "__main__":
    main()
