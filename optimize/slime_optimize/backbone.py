"""A loaded backbone, shaped as Stable Diffusion 1.x or 2.x: the embedded one, a folder, a file, a hub id.

All of them are the same thing, a folder in diffusers layout, which backbone_folder.py reads. A backbone may have a
second encoder of images, diffusers' AutoencoderTiny, which gives the VAE's latents for a fraction of its work. Which
one a segmenter was made with is part of the segmenter: the latents of another differ.

Shape suffixes: B batch, S image side, h, w latent sides, T text tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slime_optimize.backbone_folder import TINY_FOLDER, load_models, load_tiny_model, locate_backbone
from slime_optimize.backbone_folder import TOKENS as TOKENS
from slime_optimize.backbone_folder import content_hash as content_hash
from slime_optimize.backbone_folder import read_recommended as read_recommended
from slime_optimize.errors import BackboneError, first_line
from slime_optimize.single_file import cached_folder, is_single_file

EMBEDDED = "embedded"


@dataclass(frozen=True, kw_only=True)
class TinyName:
    """Which tiny encoder: `hash` of its content, and `id`, a folder or hub id, or None in the backbone's own folder."""

    id: str | None
    hash: str


@dataclass(frozen=True, kw_only=True)
class TinyEncoder:
    """A loaded, frozen AutoencoderTiny."""

    name: TinyName
    model: Any

    def encode(self, pixels_B3SS: Tensor) -> Tensor:
        """Return the scaled latents (B,4,h,w) of pixels in [-1, 1], which diffusers brings to the model's [0, 1]."""
        latents: Tensor = self.model.encode(pixels_B3SS).latents * self.model.config.scaling_factor
        return latents


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A loaded, frozen Stable Diffusion.

    `id` is what to load it by again; `hash` is the sha256 of its content, without the tiny encoder; `recommended` are
    the settings that suit it. Images have `image_size` and latents `latent_size` pixels a side.
    """

    id: str
    hash: str
    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any
    image_size: int
    latent_size: int
    recommended: Mapping[str, Any]
    tiny: TinyEncoder | None = None

    @property
    def device(self) -> torch.device:
        """Device of the UNet and the encoders."""
        return torch.device(self.unet.device)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the UNet."""
        dtype: torch.dtype = self.unet.dtype
        return dtype

    @property
    def text_width(self) -> int:
        """D, the width of a token's embedding."""
        return int(self.unet.config.cross_attention_dim)

    @property
    def predicts_velocity(self) -> bool:
        """Whether the UNet predicts the velocity; else it predicts the noise."""
        return bool(self.scheduler.config.prediction_type == "v_prediction")

    def encode(self, pixels_B3SS: Tensor, sampler: torch.Generator | None = None, *, encoder: str = "vae") -> Tensor:
        """Return the scaled latents (B,4,h,w) of pixels in [-1, 1], from the VAE or the tiny encoder.

        Those of the VAE are its posterior's mean, or a sample drawn from `sampler`, a generator on the CPU; the tiny
        encoder has no posterior. Raises BackboneError where there is no tiny encoder.
        """
        pixels_B3SS = pixels_B3SS.to(self.device, self.dtype)
        with torch.no_grad():
            if encoder == "tiny":
                return self._tiny.encode(pixels_B3SS)
            posterior = self.vae.encode(pixels_B3SS).latent_dist
            latents = posterior.mean
            if sampler is not None:
                latents = latents + posterior.std * torch.randn(latents.shape, generator=sampler).to(latents)
            scaled: Tensor = latents * self.vae.config.scaling_factor
        return scaled

    def tiny_name(self, encoder: str) -> TinyName | None:
        """Return what a segmenter made with `encoder` is checked against, besides `hash`; None for the VAE.

        Raises BackboneError where a tiny encoder is wanted and not there.
        """
        return self._tiny.name if encoder == "tiny" else None

    def encoder_model(self, encoder: str) -> Any:
        """Return the AutoencoderKL or AutoencoderTiny that encodes. Raises as `tiny_name`."""
        return self._tiny.model if encoder == "tiny" else self.vae

    @property
    def _tiny(self) -> TinyEncoder:
        if self.tiny is None:
            raise BackboneError(
                f"backbone {self.id}: has no {TINY_FOLDER}; give --encoder vae, or name an AutoencoderTiny by "
                "--tiny-encoder, such as madebyollin/taesd for Stable Diffusion 1.x and 2.x"
            )
        return self.tiny

    def add_noise(self, latents_B4hw: Tensor, noise_B4hw: Tensor, timestep: Tensor) -> Tensor:
        """Return latents at `timestep`, () or (B,): sqrt(a_t) latents + sqrt(1 - a_t) noise."""
        signal, spread = self._levels(timestep, latents_B4hw)
        return signal * latents_B4hw + spread * noise_B4hw

    def target(self, latents_B4hw: Tensor, noise_B4hw: Tensor, timestep: Tensor) -> Tensor:
        """Return what the UNet should answer at `timestep`: the noise, or the velocity."""
        if not self.predicts_velocity:
            return noise_B4hw
        signal, spread = self._levels(timestep, latents_B4hw)
        return signal * noise_B4hw - spread * latents_B4hw

    def encode_text(self, prompt: str) -> Tensor:
        """Return the embedding (1,T,D) of `prompt`, cut or padded to 77 tokens."""
        tokens = self.tokenizer(prompt, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
        with torch.no_grad():
            encoded: Tensor = self.text_encoder(tokens.input_ids.to(self.device))[0]
        return encoded.to(self.dtype)

    def _levels(self, timestep: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        # In the latents' precision before the root, as diffusers' schedulers do it.
        levels = self.scheduler.alphas_cumprod.to(like.device, torch.promote_types(like.dtype, torch.float32))
        level = levels[timestep.to(like.device)].reshape(-1, 1, 1, 1)
        return level.sqrt().to(like.dtype), (1 - level).sqrt().to(like.dtype)


def embedded_folder() -> Path:
    """Return the folder of the embedded backbone: in the installed package, or else in the checkout around it."""
    here = Path(__file__).resolve()
    packaged = here.with_name("embedded")
    return packaged if packaged.is_dir() else here.parents[2] / "backbone" / "weights"


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` is a GPU where there is one. BackboneError for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise BackboneError(f"device {name!r}: {first_line(error)}; expected auto, cpu or cuda") from error
    return device


def load_backbone(
    name: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, *, tiny: str | None = None
) -> Backbone:
    """Load `embedded`, a folder in diffusers layout, a checkpoint in one file, or a hub id, frozen, for evaluation.

    `tiny` is the folder or hub id of a tiny encoder, in place of the backbone's own. Raises BackboneError, in one line,
    when it is not there, unreadable, or not of SD 1.x/2.x's shape.
    """
    if str(name) == EMBEDDED:
        folder, identity = embedded_folder(), EMBEDDED
        if not (folder / "unet").is_dir():
            raise BackboneError(
                f"backbone embedded: its weights are not in {folder}; "
                "train them with backbone/train.py, or give --backbone a folder or hub id"
            )
    elif is_single_file(str(name)):
        file = Path(name).expanduser()
        folder, identity = cached_folder(file), str(file.resolve())
    else:
        folder, identity = locate_backbone(str(name))
    models = load_models(folder, device, dtype)
    scale = 2 ** (len(models["vae"].config.block_out_channels) - 1)
    latent_size = int(models["unet"].config.sample_size)
    return Backbone(
        id=identity,
        hash=content_hash(folder),
        image_size=latent_size * scale,
        latent_size=latent_size,
        recommended=read_recommended(folder),
        tiny=load_tiny(folder, tiny, scale, device, dtype),
        **models,
    )


def load_tiny(
    backbone: Path, where: str | None, shrinks: int, device: str | torch.device, dtype: torch.dtype
) -> TinyEncoder | None:
    """Load the tiny encoder at `where`, else the one in the folder of the `backbone`; None without one.

    Its images must shrink `shrinks` times. Raises BackboneError as backbone_folder.load_tiny_model.
    """
    found = load_tiny_model(backbone, where, shrinks, device, dtype)
    return TinyEncoder(model=found[0], name=TinyName(id=found[1], hash=found[2])) if found else None
