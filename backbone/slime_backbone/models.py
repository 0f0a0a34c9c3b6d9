"""The small Stable Diffusion: configurations, and an initialisation whose attention is a kernel from the first step."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from slime_optimize.files import write_text

LENGTH = 77  # tokens of every prompt, as in Stable Diffusion
WIDTH = 128  # of the text embedding
LATENT = 32  # latent side: 128 px over the VAE's factor of 4
CHANNELS = (48, 96, 96, 96)
HEADS = (1, 2, 2, 2)  # all CHANNELS[0] wide, as the keys that cross-attention shares want
SHARPNESS = {"attn1": 4.0, "attn2": 1.5}  # standard deviation of the attention logits at the start
LEAD = 4.0  # of the first token's logit over the others', at the start
FILLER = "part"  # says nothing in captions, so that the paper's starting prompt draws no attention
TOKENIZER_FILES = ("vocab.json", "merges.txt")  # what a tokenizer is made from
START, END = "<|startoftext|>", "<|endoftext|>"


def build_vae() -> AutoencoderKL:
    """Return an untrained VAE from 128 px to 32 x 32 x 4 latents."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=4 * LATENT,
    )


def build_tiny_vae() -> AutoencoderTiny:
    """An encoder of the VAE's latents for under a fifth of its multiplications. Nothing decodes with it: its decoder
    is the least that the class can have, and zero."""
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(16,) * 3,
        num_encoder_blocks=(0, 1, 4),  # none at full resolution, where one would cost more than all the rest
        decoder_block_out_channels=(1,),
        num_decoder_blocks=(0,),
    )
    for weight in tiny.decoder.parameters():
        torch.nn.init.zeros_(weight)
    return tiny


def build_unet() -> UNet2DConditionModel:
    """SD 2.1's block types and 16 cross-attention layers on a narrow trunk; heads that are wide enough to find a part
    by themselves, one at the widest maps, where attention is the dearest operation by far."""
    unet = UNet2DConditionModel(
        sample_size=LATENT,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=CHANNELS,
        layers_per_block=2,
        norm_num_groups=8,
        cross_attention_dim=WIDTH,
        attention_head_dim=HEADS,  # diffusers' name for the NUMBER of heads
        use_linear_projection=True,
    )
    sharpen(unet)
    return unet


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return an untrained text encoder: two layers are enough to bind a colour to the part that follows it."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = CLIPTextModel(config)
    for name, weight in encoder.named_parameters():
        if name.endswith("token_embedding.weight"):
            torch.nn.init.normal_(weight, std=1.0)
        if name.endswith("position_embedding.weight"):
            torch.nn.init.normal_(weight, std=0.3)
    return encoder


def build_scheduler() -> DDIMScheduler:
    """Return Stable Diffusion's noise schedule, with velocity prediction: it trains evenly over the timesteps."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


@torch.no_grad()
def sharpen(unet: UNet2DConditionModel) -> None:
    """Give attention peaks from the first step: self-attention's keys are its queries, cross-attention's one for all.

    A convolutional UNet this small learns to denoise long before it needs attention, and the maps stay
    uniform. Starting from softmax(|q - q'|^2-like) similarities of SHARPNESS keeps them peaked. Every head of every
    cross-attention reads the same keys (d, D): no layer can mean something else by a word, or by a learned token. The
    result is an ordinary checkpoint.
    """
    shared_dD = None
    for name, module in unet.named_modules():
        kind = name.rpartition(".")[2]
        if kind not in SHARPNESS:
            continue
        gain = (3 * SHARPNESS[kind]) ** 0.5  # a linear layer's default outputs have variance 1/3
        module.to_q.weight.mul_(gain)
        if kind == "attn1":
            module.to_k.weight.copy_(module.to_q.weight)
            continue
        if shared_dD is None:
            shared_dD = gain * module.to_k.weight[: len(module.to_k.weight) // module.heads].clone()
        module.to_k.weight.copy_(shared_dD.repeat(module.heads, 1))


@torch.no_grad()
def lead(unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
    """Let every pixel's query favour the first token by LEAD, through the bias of the norm before cross-attention."""
    start = torch.tensor([[text_encoder.config.bos_token_id]], device=unet.device)
    first_D = text_encoder(start)[0][0, 0]
    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            key_hd = (module.to_k.weight @ first_D).view(module.heads, -1)
            wanted_hd = LEAD * key_hd.shape[1] ** 0.5 * key_hd / key_hd.square().sum(1, keepdim=True)
            norm = unet.get_submodule(name.rpartition(".")[0]).norm2
            norm.bias.copy_(torch.linalg.lstsq(module.to_q.weight, wanted_hd.view(-1, 1)).solution[:, 0])


def build_tokenizer(captions: Iterable[str], folder: Path) -> CLIPTokenizer:
    """Return a CLIP tokenizer whose byte-pair merges make every caption word one token; kept in `folder`.

    One that is in `folder` already is taken as it is, because what was trained knows its token ids.
    """
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    if not (vocabulary.exists() and merges.exists()):
        _train_tokenizer(captions, vocabulary, merges)
    tokenizer = CLIPTokenizer(str(vocabulary), str(merges), model_max_length=LENGTH, pad_token=END)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _train_tokenizer(captions: Iterable[str], vocabulary: Path, merges: Path) -> None:
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1200, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    bpe.train_from_iterator([*captions, *[FILLER] * 50], trainer)
    learned = json.loads(bpe.to_str())["model"]
    pairs = [" ".join(pair) for pair in learned["merges"]]
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), *("".join(p.split()) for p in pairs), START, END]
    ids = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    merges.parent.mkdir(parents=True, exist_ok=True)
    merges.write_text("\n".join(["#version: 0.2", *pairs, ""]))
    write_text(vocabulary, json.dumps(ids, ensure_ascii=False))
