"""Loads a Stable-Diffusion-shaped backbone: the embedded one, a folder, or a hub id.

All three are the same thing, a folder in diffusers layout (unet, vae, text_encoder, tokenizer,
scheduler), read by the same code; only safetensors weights, never remote code. The shape is
checked from the config files, before any weight is read.

A folder may hold `slime.json`: settings that suit this backbone, in place of the preset's. And it may hold a second
encoder, `tiny_vae`.

Shape suffixes: B batch, S image side, h, w latent sides, T text tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slime_optimize.backbone_folder import DIFFUSERS, TRANSFORMERS, digest, load_options, locate, read_json, used_files
from slime_optimize.errors import BackboneError, first_line
from slime_optimize.tiny import FOLDER, TinyEncoder, TinyName, load_tiny

EMBEDDED = "embedded"
TOKENS = 77
_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_HASHED = ("unet", "vae", "text_encoder", "scheduler")
_WEIGHTS = {"unet": DIFFUSERS, "vae": DIFFUSERS, "text_encoder": TRANSFORMERS}


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A loaded, frozen Stable Diffusion. `id` is what to load it by again, `hash` its content, `tiny` not counted."""

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
        return torch.device(self.unet.device)

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.unet.dtype
        return dtype

    @property
    def text_width(self) -> int:
        return int(self.unet.config.cross_attention_dim)

    @property
    def predicts_velocity(self) -> bool:
        return bool(self.scheduler.config.prediction_type == "v_prediction")

    def encode(self, pixels_B3SS: Tensor, chance: torch.Generator | None = None, *, encoder: str = "vae") -> Tensor:
        """Pixels in [-1, 1] -> scaled latents (B,4,h,w) of the VAE, or of the tiny encoder.

        The VAE's are its posterior's mean, or a sample drawn with `chance`, a generator on the CPU; the tiny encoder
        has no posterior. Raises BackboneError where there is no tiny encoder.
        """
        pixels_B3SS = pixels_B3SS.to(self.device, self.dtype)
        with torch.no_grad():
            return self._vae_latents(pixels_B3SS, chance) if encoder == "vae" else self._tiny.encode(pixels_B3SS)

    def tiny_name(self, encoder: str) -> TinyName | None:
        """What a segmenter made with `encoder` is checked against, besides `hash`; None for the VAE.

        Raises BackboneError where a tiny encoder is wanted and not there.
        """
        return self._tiny.name if encoder == "tiny" else None

    def encoder_model(self, encoder: str) -> Any:
        """The AutoencoderKL or AutoencoderTiny that encodes. Raises as `tiny_name`."""
        return self._tiny.model if encoder == "tiny" else self.vae

    @property
    def _tiny(self) -> TinyEncoder:
        if self.tiny is None:
            raise BackboneError(
                f"backbone {self.id}: has no {FOLDER}; give --encoder vae, or name an AutoencoderTiny by "
                "--tiny-encoder, such as madebyollin/taesd for Stable Diffusion 1.x and 2.x"
            )
        return self.tiny

    def _vae_latents(self, pixels_B3SS: Tensor, chance: torch.Generator | None) -> Tensor:
        posterior = self.vae.encode(pixels_B3SS).latent_dist
        latents = posterior.mean
        if chance is not None:
            drawn = torch.randn(latents.shape, generator=chance).to(latents)
            latents = latents + posterior.std * drawn
        scaled: Tensor = latents * self.vae.config.scaling_factor
        return scaled

    def add_noise(self, latents_B4hw: Tensor, noise_B4hw: Tensor, timestep: Tensor) -> Tensor:
        """Latents at `timestep`, () or (B,): sqrt(a_t) latents + sqrt(1 - a_t) noise."""
        signal, spread = self._levels(timestep, latents_B4hw)
        return signal * latents_B4hw + spread * noise_B4hw

    def target(self, latents_B4hw: Tensor, noise_B4hw: Tensor, timestep: Tensor) -> Tensor:
        """What the UNet should answer at `timestep`: the noise, or the velocity."""
        if not self.predicts_velocity:
            return noise_B4hw
        signal, spread = self._levels(timestep, latents_B4hw)
        return signal * noise_B4hw - spread * latents_B4hw

    def encode_text(self, prompt: str) -> Tensor:
        """`prompt`, cut or padded to 77 tokens -> (1,T,D)."""
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
    """Where the repository keeps the embedded backbone."""
    return Path(__file__).resolve().parents[2] / "backbone" / "weights"


def choose_device(name: str) -> torch.device:
    """`auto` is a GPU where there is one; BackboneError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise BackboneError(f"device {name!r}: {first_line(error)}; expected auto, cpu or cuda") from error
    return device


def load_backbone(
    name: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    tiny: str | None = None,
) -> Backbone:
    """Loads `embedded`, a folder in diffusers layout, or a hub id, frozen and in evaluation mode.

    `tiny` is the folder or hub id of a tiny encoder, in place of the backbone's own. Raises BackboneError, in one line,
    when it is not there, unreadable, or not of SD 1.x/2.x's shape.
    """
    folder, identity = _locate(str(name))
    configs = {part: _read_config(folder, part) for part in ("unet", "vae", "text_encoder", "scheduler")}
    _check_shape(folder, configs)
    models = _load_models(folder, dtype)
    scale = 2 ** (len(models["vae"].config.block_out_channels) - 1)
    latent_size = int(models["unet"].config.sample_size)
    for part in ("unet", "vae"):
        models[part].to(device).eval().requires_grad_(False)
    config = models.pop("text_encoder").config  # it can be loaded, as was seen
    models["text_encoder"] = _TextEncoder(folder=folder, device=device, dtype=dtype, config=config)
    return Backbone(
        id=identity,
        hash=content_hash(folder),
        image_size=latent_size * scale,
        latent_size=latent_size,
        recommended=read_recommended(folder),
        tiny=load_tiny(folder, tiny, scale, device, dtype),
        **models,
    )


def content_hash(folder: Path) -> str:
    """sha256 over the configs and weights that decide what a segmenter of this backbone answers."""
    return digest(_hashed_files(folder))


def _hashed_files(folder: Path) -> Iterator[tuple[str, Path]]:
    for part in _HASHED:
        files = [_config(folder, part)] if part == "scheduler" else used_files(folder / part, _WEIGHTS[part])
        yield from ((f"{part}/{path.name}", path) for path in files)


def _locate(name: str) -> tuple[Path, str]:
    """The folder to read, and the id to remember."""
    if name == EMBEDDED:
        folder = embedded_folder()
        if not (folder / "unet").is_dir():
            raise BackboneError(
                "backbone embedded: its weights are not in this checkout's backbone/weights; "
                "train them with backbone/train.py, or give --backbone a folder or hub id"
            )
        return folder, EMBEDDED
    wanted = [f"{part}/*.json" for part in (*_PARTS, FOLDER)] + ["model_index.json", "slime.json", "tokenizer/*"]
    wanted += [f"{part}/{stem}.safetensors" for part, stem in {**_WEIGHTS, FOLDER: DIFFUSERS}.items()]
    return locate(name, wanted, "backbone", also="'embedded', ")


def _config(folder: Path, part: str) -> Path:
    return folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")


def _read_config(folder: Path, part: str) -> dict[str, Any]:
    path = _config(folder, part)
    config = read_json(path)
    if config is None:
        raise BackboneError(
            f"backbone {folder}: has no {part}/{path.name}; expected a folder in diffusers layout ({', '.join(_PARTS)})"
        )
    return config


def read_recommended(folder: Path) -> dict[str, Any]:
    """Settings that suit the backbone in `folder`, as presets.preset takes them."""
    return read_json(folder / "slime.json") or {}


def _check_shape(folder: Path, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuses, with the reason, what is not the UNet, VAE and text encoder of SD 1.x or 2.x."""
    unet, vae, text = configs["unet"], configs["vae"], configs["text_encoder"]
    sizes = (unet.get("sample_size"), unet.get("cross_attention_dim"))
    reasons = {
        f"its UNet is a {unet.get('_class_name')}": unet.get("_class_name") != "UNet2DConditionModel",
        f"its VAE is a {vae.get('_class_name')}": vae.get("_class_name") != "AutoencoderKL",
        "it has two text encoders and added conditions, as SDXL": bool(unet.get("addition_embed_type"))
        or (folder / "text_encoder_2").is_dir(),
        "its UNet wants class labels": bool(unet.get("class_embed_type") or unet.get("num_class_embeds")),
        "its UNet projects its conditions": bool(unet.get("encoder_hid_dim_type") or unet.get("encoder_hid_dim")),
        f"its UNet takes {unet.get('in_channels', 4)} channels (inpainting, or depth)": unet.get("in_channels", 4) != 4,
        "its UNet has no one square latent size or text width": not all(isinstance(x, int) for x in sizes),
        "its UNet normalises or gates attention": bool(unet.get("cross_attention_norm"))
        or bool(unet.get("only_cross_attention"))
        or bool(unet.get("dual_cross_attention"))
        or unet.get("attention_type", "default") != "default",
        f"its VAE has {vae.get('latent_channels', 4)} latent channels": vae.get("latent_channels", 4) != 4,
        f"its text encoder is {text.get('hidden_size')} wide, its UNet's text {sizes[1]}": text.get("hidden_size", 512)
        != sizes[1],
        f"its text encoder holds {text.get('max_position_embeddings')} tokens": text.get("max_position_embeddings", 77)
        != TOKENS,
        f"it predicts {configs['scheduler'].get('prediction_type')}": configs["scheduler"].get(
            "prediction_type", "epsilon"
        )
        not in ("epsilon", "v_prediction"),
    }
    for reason, holds in reasons.items():
        if holds:
            raise BackboneError(
                f"backbone {folder}: {reason}; expected Stable Diffusion 1.x or 2.x (text-to-image), "
                "such as SD 1.5 or SD 2.1-base"
            )


def _load_models(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # loading takes a moment; a bar for each model says nothing
    try:
        return {
            "unet": UNet2DConditionModel.from_pretrained(
                folder / "unet", torch_dtype=dtype, **load_options(folder / "unet")
            ),
            "vae": AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=dtype, **load_options(folder / "vae")),
            "text_encoder": _text_encoder(folder, dtype),
            "tokenizer": CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
            # Whatever sampler the folder names, only its noise levels are used, and DDIM knows them.
            "scheduler": DDIMScheduler.from_pretrained(folder / "scheduler", local_files_only=True),
        }
    except Exception as error:  # foreign loaders raise of every kind; the user gets one line
        raise BackboneError(f"backbone {folder}: its weights cannot be loaded ({first_line(error)})") from error


def _text_encoder(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import CLIPTextModel

    model = folder / "text_encoder"
    return CLIPTextModel.from_pretrained(model, dtype=dtype, **load_options(model, TRANSFORMERS))


@dataclass(frozen=True, kw_only=True)
class _TextEncoder:
    """In memory only while it is called: a run encodes two prompts, and SD 2.1's weighs more than a gigabyte."""

    folder: Path
    device: str | torch.device
    dtype: torch.dtype
    config: Any

    def __call__(self, ids_BT: Tensor) -> tuple[Tensor]:
        encoder = _text_encoder(self.folder, self.dtype).to(self.device).eval()
        return (encoder(ids_BT)[0],)
