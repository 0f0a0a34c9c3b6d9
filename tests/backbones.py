"""Tiny, randomly initialised backbones in diffusers layout, for tests of every component.

    build(folder, "sd15")   heads the same at every level, conv projections, epsilon prediction
    build(folder, "sd21")   heads per level, linear projections, velocity prediction
    build_tiny(folder)      a tiny encoder of their latents, which `build` leaves out

Both have Stable Diffusion's 4 levels and 16 cross-attention layers, 64-pixel images and 16x16 latents,
and are written in well under a second.
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

KINDS: dict[str, dict[str, Any]] = {
    "sd15": {"attention_head_dim": 2, "use_linear_projection": False, "cross_attention_dim": 24},
    "sd21": {"attention_head_dim": [1, 2, 4, 4], "use_linear_projection": True, "cross_attention_dim": 32},
}
PREDICTION = {"sd15": "epsilon", "sd21": "v_prediction"}
LATENT_SIZE = 16
IMAGE_SIZE = 64


def build(folder: Path, kind: str = "sd15", seed: int = 0) -> Path:
    """Writes a whole backbone of `kind` into `folder`; the same seed gives the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        _unet(kind).save_pretrained(folder / "unet")
        _vae().save_pretrained(folder / "vae")
        _write_tokenizer(folder / "tokenizer")
        _text_encoder(KINDS[kind]["cross_attention_dim"]).save_pretrained(folder / "text_encoder")
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=PREDICTION[kind]
    )
    scheduler.save_pretrained(folder / "scheduler")
    return folder


def build_tiny(folder: Path, seed: int = 0) -> Path:
    """Writes an AutoencoderTiny into `folder`: BACKBONE/tiny_vae, or one of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        AutoencoderTiny(
            encoder_block_out_channels=(8,) * 3,
            num_encoder_blocks=(0, 1, 1),
            decoder_block_out_channels=(4,),
            num_decoder_blocks=(0,),
            scaling_factor=0.8,
        ).save_pretrained(folder)
    return folder


def edit_config(folder: Path, part: str, **changes: Any) -> None:
    """Changes a config in place, to make a folder that must be refused."""
    path = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _unet(kind: str) -> UNet2DConditionModel:
    unet = UNet2DConditionModel(
        sample_size=LATENT_SIZE, block_out_channels=(8, 16, 16, 16), norm_num_groups=4, **KINDS[kind]
    )
    with torch.no_grad():  # at their first scale the maps would be uniform, and tests of them empty
        for name, weight in unet.named_parameters():
            if name.endswith(("to_q.weight", "to_k.weight")):
                weight *= 4
    return unet


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        latent_channels=4,
        scaling_factor=0.5,
    )


def _text_encoder(width: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=64,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=77,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )


def _write_tokenizer(folder: Path) -> None:
    """Letters, with and without the end-of-word mark, and the word `part` as one token."""
    folder.mkdir(parents=True)
    letters = [f"{c}{end}" for c in string.ascii_lowercase for end in ("", "</w>")]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, "pa", "rt</w>", "part</w>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\np a\nr t</w>\npa rt</w>\n")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 77,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
