"""Write backbones of Stable Diffusion's exact shapes with random weights, to measure speed and memory with.

    python -m benchmarks.common.random_backbone --like sd21 --out FOLDER

It takes a minute: models are made without memory and then filled layer by layer, instead of by their own slow start.
Each layer keeps its input's scale; queries and keys are enlarged (attention_peaks.py), so that attention has peaks as
a trained model's has. FOLDER/segmenter holds random embeddings of a few parts, each of which covers at least 2 % of the
pixels. `--like embedded` writes such a segmenter of the embedded backbone, and no backbone.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from benchmarks.common import command_line
from benchmarks.common.attention_peaks import enlarge_queries, unit_latents
from benchmarks.common.pictures import picture
from benchmarks.common.sides import ROOT, python, say
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from slime_image import fit
from slime_optimize.backbone import EMBEDDED, Backbone, embedded_folder, load_backbone
from slime_optimize.backbone_folder import TOKENS
from slime_optimize.method.prediction import Predictor
from slime_optimize.presets import PAPER
from slime_optimize.segmenter import Segmenter

LATENT_CHANNELS = 4
SEGMENTER = "segmenter"
LEAST_SHARE = 0.02  # of pixels, of the part that covers fewest
# The paper's, but for what only trained maps allow: random ones stay far under a threshold and lie close together.
SETTINGS = PAPER.changed({"threshold": 0.0, "rescale": True})


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The models' arguments that differ from the defaults of diffusers and transformers."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text: Mapping[str, Any]
    tiny: Mapping[str, Any]  # TAESD's shape is diffusers' default


def _text(width: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    return {**sizes, "num_attention_heads": heads, **more}


_VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": LATENT_CHANNELS,
    "sample_size": 512,
}
_UNET: dict[str, Any] = {"sample_size": 64, "block_out_channels": (320, 640, 1280, 1280)}
_SD21 = {"attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024, "use_linear_projection": True}
_SD15 = {"attention_head_dim": 8, "cross_attention_dim": 768}
SHAPES = {
    "sd21": Shape(unet={**_UNET, **_SD21}, vae=_VAE, text=_text(1024, 23, 16, hidden_act="gelu"), tiny={}),
    "sd15": Shape(unet={**_UNET, **_SD15}, vae=_VAE, text=_text(768, 12, 12), tiny={}),
}


def write(shape: Shape, folder: Path, seed: int = 0) -> Path:
    """Write a backbone of `shape`, one model in memory at a time; the same seed gives the same weights."""
    chance = torch.Generator().manual_seed(seed)
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler.save_pretrained(folder / "scheduler")
    shutil.copytree(embedded_folder() / "tokenizer", folder / "tokenizer")  # its ids are few, and all known
    text = _filled(lambda: CLIPTextModel(CLIPTextConfig(max_position_embeddings=TOKENS, **shape.text)), chance)
    text.save_pretrained(folder / "text_encoder")
    del text
    side = int(shape.unet["sample_size"]) * 2 ** (len(shape.vae["block_out_channels"]) - 1)
    pixels_13SS = torch.from_numpy(fit(picture(side, seed), side))[None]
    latents_14hw = _autoencoders(shape, folder, chance, pixels_13SS)
    unet = _filled(lambda: UNet2DConditionModel(**shape.unet), chance)
    noise_14hw = torch.randn(latents_14hw.shape, generator=chance)
    step = torch.tensor([SETTINGS.t_test])
    text_1TD = torch.randn(1, TOKENS, int(shape.unet["cross_attention_dim"]), generator=chance)
    enlarge_queries(unet, scheduler.add_noise(latents_14hw, noise_14hw, step), step, text_1TD)
    unet.save_pretrained(folder / "unet")
    return folder


def _autoencoders(shape: Shape, folder: Path, chance: torch.Generator, pixels_13SS: Tensor) -> Tensor:
    """Write the tiny and the KL autoencoder; return the latents (1,4,h,w) that the KL one gives of the pixels."""
    tiny = _filled(lambda: AutoencoderTiny(**shape.tiny), chance)
    unit_latents(tiny, pixels_13SS)
    tiny.save_pretrained(folder / "tiny_vae")
    vae = _filled(lambda: AutoencoderKL(**shape.vae), chance)
    latents_14hw = unit_latents(vae, pixels_13SS)
    vae.save_pretrained(folder / "vae")
    return latents_14hw


def bare(build: Callable[[], Any]) -> Any:
    """Return what `build` makes, without memory for its weights."""
    with torch.device("meta"):
        return build()


def _filled(build: Callable[[], Any], chance: torch.Generator) -> Any:
    model = bare(build).to_empty(device="cpu").eval().requires_grad_(False)
    norms = {id(each.weight) for each in model.modules() if isinstance(each, nn.GroupNorm | nn.LayerNorm)}
    for weight in model.parameters():
        if weight.ndim < 2:
            weight.fill_(1.0 if id(weight) in norms else 0.0)
        else:
            weight.normal_(0.0, 1 / math.sqrt(weight[0].numel()), generator=chance)
    return model


def random_segmenter(backbone: Backbone, parts: int, seed: int = 0) -> Segmenter:
    """Return a segmenter of `parts` random embeddings: of 77 tokens, those whose masks share a picture most evenly."""
    chance = torch.Generator().manual_seed(seed)
    side = backbone.latent_size
    every = Segmenter(
        text_embedding=torch.randn(1, TOKENS, backbone.text_width, generator=chance),
        noise=torch.randn(1, LATENT_CHANNELS, side, side, generator=chance),
        parts=("background", *(f"part {token}" for token in range(1, TOKENS))),
        colours=tuple((token * 3, 255 - token * 3, token * 37 % 256) for token in range(TOKENS)),
        backbone_id=backbone.id,
        backbone_hash=backbone.hash,
        image_size=backbone.image_size,
        latent_size=side,
        settings=SETTINGS,
        preset="paper",
        seed=seed,
    )
    # The softmax is over all 77 tokens, so that their order changes no map.
    scores_Thw = Predictor(every, backbone).scores([picture(backbone.image_size, seed)])[0]
    order = [*(chosen := _even(scores_Thw, parts)), *sorted({*range(TOKENS)} - {*chosen})]
    rows_1TD = every.text_embedding[:, order]
    return replace(every, text_embedding=rows_1TD, parts=every.parts[:parts], colours=every.colours[:parts])


def _even(scores_Thw: Tensor, parts: int) -> list[int]:
    """Return tokens whose argmax has a high entropy: exchange the rarest for a better one, as long as there is one."""
    chosen = list(range(parts))
    while True:
        counts_K = _counts(scores_Thw[chosen])
        others = [token for token in range(len(scores_Thw)) if token not in chosen]
        rarest = int(counts_K.argmin())
        trials = [[*chosen[:rarest], token, *chosen[rarest + 1 :]] for token in others]
        best = max(trials, key=lambda trial: _entropy(_counts(scores_Thw[trial])), default=chosen)
        if _entropy(_counts(scores_Thw[best])) <= _entropy(counts_K):
            return chosen
        chosen = best


def _counts(scores_Khw: Tensor) -> Tensor:
    return torch.bincount(scores_Khw.argmax(0).flatten(), minlength=len(scores_Khw))


def _entropy(counts_K: Tensor) -> float:
    return float(torch.special.entr(counts_K / counts_K.sum()).sum())


def shares(segmenter: Segmenter, backbone: Backbone, picture_HW3: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Return each part's share of the mask's pixels, (K,)."""
    mask_HW = Predictor(segmenter, backbone).mask(picture_HW3)
    return np.bincount(mask_HW.ravel(), minlength=len(segmenter.parts)) / mask_HW.size


def written(shape: str, work: Path = ROOT / "build") -> str:
    """Return the backbone of that shape: `embedded`, or a folder in `work`, which a process of its own writes once.

    It takes 5 GB on disk, where all sides of a benchmark map the one copy.
    """
    if shape == EMBEDDED:
        return shape
    folder = work / f"random-{shape}"
    if not folder.exists():
        work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=work, prefix=".random-") as waiting:
            say(f"writing random weights of {shape} into {folder}")
            python("benchmarks.common.random_backbone", "--like", shape, "--out", f"{waiting}/made")
            os.replace(f"{waiting}/made", folder)
    return str(folder)


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_line.parser(__doc__)
    parser.add_argument("--like", choices=[EMBEDDED, *sorted(SHAPES)], required=True)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="(build/random-LIKE) takes 5 GB")
    parser.add_argument("--parts", type=int, default=6, help="of the segmenter in it, with the background (6)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    options.out = options.out or Path("build") / f"random-{options.like}"
    if options.like != EMBEDDED and options.out.exists() and any(options.out.iterdir()):
        print(f"error: folder {options.out}: is not empty; give another --out", file=sys.stderr)
        return 2
    if options.like != EMBEDDED:
        write(SHAPES[options.like], options.out, options.seed)
    backbone = load_backbone(EMBEDDED if options.like == EMBEDDED else options.out)
    segmenter = random_segmenter(backbone, options.parts, options.seed)
    segmenter.save(options.out / SEGMENTER)
    shares_K = shares(segmenter, backbone, picture(backbone.image_size, options.seed))
    told = ", ".join(f"{100 * share:.1f}" for share in shares_K)
    print(f"{options.out}: {options.like}, parts cover {told} % of pixels (at least {100 * LEAST_SHARE:.0f} wanted)")
    return 0 if options.like == EMBEDDED or shares_K.min() >= LEAST_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
