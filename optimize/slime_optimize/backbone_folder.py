"""A backbone on disk, in diffusers layout: find it, check its shape, hash it, and load its models.

The layout is a folder with unet, vae, text_encoder, tokenizer and scheduler; it may also hold a second encoder of
images, tiny_vae, and settings that suit the backbone, slime.json. Of pickled weights only tensors are ever read, and no
remote code is run. The shape is checked from the config files, before any weight is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slime_optimize.backbone_hub import choose_models, locate
from slime_optimize.backbone_weights import STEM, ModelFolder
from slime_optimize.errors import BackboneError, first_line

TOKENS = 77  # of the text encoder of Stable Diffusion 1.x and 2.x
TINY_FOLDER = "tiny_vae"
SETTINGS_FILE = "slime.json"
_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_STEMS = {"unet": STEM, "vae": STEM, "text_encoder": "model", TINY_FOLDER: STEM}
_VOCABULARY = ("vocab.json", "merges.txt")
_TOKENIZER_FILES = (*_VOCABULARY, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_OTHER_FILES = {f"tokenizer/{name}" for name in (*_TOKENIZER_FILES, "added_tokens.json")}
_OTHER_FILES |= {"scheduler/scheduler_config.json", "text_encoder_2/config.json", SETTINGS_FILE}


def locate_backbone(name: str) -> tuple[Path, str]:
    """Return the folder called `name`, or the fetched files of a hub id, and the id to find it by again."""
    return locate(name, lambda subject, names: choose_models(subject, names, _STEMS, _OTHER_FILES))


def _locate_tiny(name: str) -> tuple[Path, str]:
    def choose(subject: str, names: list[str]) -> list[str]:
        part = "" if "config.json" in names else TINY_FOLDER
        return choose_models(subject, names, {part: STEM}, set())

    return locate(name, choose, "tiny encoder", "")


def read_recommended(folder: Path) -> dict[str, Any]:
    """Return the settings that suit the backbone in `folder`, as presets.preset takes them."""
    return _read_json(folder / SETTINGS_FILE) or {}


def content_hash(folder: Path) -> str:
    """Return the sha256 of the configs and weights that decide what a segmenter of this backbone answers."""
    files = [(part, path) for part in ("unet", "vae", "text_encoder") for path in _model(folder, part).files()]
    files.append(("scheduler", _config_path(folder, "scheduler")))
    return _digest((f"{part}/{path.name}", path) for part, path in files)


def load_models(folder: Path, device: str | torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Check the backbone's shape, then return its models by name, frozen and in evaluation mode.

    Raises BackboneError, in one line, for what is not there, unreadable, or not of SD 1.x/2.x's shape.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    _check_shape(folder, {part: _read_config(folder, part) for part in ("unet", "vae", "text_encoder", "scheduler")})
    try:
        tokenizer = _load_tokenizer(folder)
        unet = _model(folder, "unet").load(UNet2DConditionModel, torch_dtype=dtype)
        vae = _model(folder, "vae").load(AutoencoderKL, torch_dtype=dtype)
        # Loaded once to see that it can be, and then again whenever it is called.
        text_encoder = TextEncoder(folder=folder, device=device, dtype=dtype, config=load_text(folder, dtype).config)
        # Whatever sampler the folder names, only its noise levels are used, and DDIM knows them.
        scheduler = DDIMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
    except (BackboneError, ModuleNotFoundError):  # a missing package is no fault of the backbone's
        raise
    except Exception as error:  # foreign loaders raise of every kind; the user gets one line
        raise BackboneError(f"backbone {folder}: cannot be loaded ({first_line(error)})") from error
    for model in (unet, vae):
        model.to(device).eval().requires_grad_(False)
    return {"unet": unet, "vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer, "scheduler": scheduler}


def _load_tokenizer(folder: Path) -> Any:
    """Return the backbone's CLIPTokenizer. Raises BackboneError without a vocabulary, or for one of another encoder."""
    from transformers import CLIPTokenizer

    where = folder / "tokenizer"
    lacking = [name for name in _VOCABULARY if not (where / name).is_file()]
    if lacking and not (where / "tokenizer.json").is_file():
        raise BackboneError(
            f"backbone {folder}: has no tokenizer/{lacking[0]}; copy the folder tokenizer of the checkpoint "
            f"that it was made from ({' and '.join(_VOCABULARY)}, or tokenizer.json)"
        )
    tokenizer = CLIPTokenizer.from_pretrained(where, local_files_only=True)
    highest, rows = max(tokenizer.get_vocab().values()), _read_config(folder, "text_encoder").get("vocab_size", 49408)
    if highest >= rows:
        raise BackboneError(
            f"backbone {folder}: its tokenizer has {highest + 1} tokens, its text encoder {rows}; "
            "copy the folder tokenizer of the checkpoint that the text encoder came with"
        )
    ids = tokenizer("a").input_ids
    if len(ids) < 3 or tokenizer.unk_token_id in ids[1:-1]:
        raise BackboneError(
            f"backbone {folder}: its tokenizer does not know the letter a; expected a CLIP vocabulary, "
            f"such as the folder tokenizer of Stable Diffusion 1.5"
        )
    return tokenizer


def load_text(folder: Path, dtype: torch.dtype) -> Any:
    """Return the backbone's CLIPTextModel, on the CPU. A tensor of another shape is told by name, and then refused."""
    from transformers import CLIPTextModel

    return _model(folder, "text_encoder").load(CLIPTextModel, dtype=dtype, ignore_mismatched_sizes=True)


@dataclass(frozen=True, kw_only=True)
class TextEncoder:
    """The text encoder, in memory only while it is called: a run encodes two prompts, and SD 2.1's has over 1 GB."""

    folder: Path
    device: str | torch.device
    dtype: torch.dtype
    config: Any

    def __call__(self, ids_BT: Tensor) -> tuple[Tensor]:
        encoder = load_text(self.folder, self.dtype).to(self.device).eval()
        return (encoder(ids_BT)[0],)


def load_tiny_model(
    backbone: Path, where: str | None, shrinks: int, device: str | torch.device, dtype: torch.dtype
) -> tuple[Any, str | None, str] | None:
    """Return an AutoencoderTiny, the id to find it by again (None: in the backbone's folder), and its sha256.

    It is the one at `where`, a folder or hub id, else the one in the folder of the `backbone`; None without one. Its
    images must shrink `shrinks` times, as the VAE's do. Raises BackboneError, in one line, for what is not there,
    unreadable, or of another shape.
    """
    from diffusers import AutoencoderTiny

    folder, identity = _locate_tiny(where) if where else (backbone, None)
    path = folder if where and (folder / "config.json").is_file() else folder / TINY_FOLDER
    config = _read_json(path / "config.json")
    if config is None:
        if not where:
            return None
        raise BackboneError(f"tiny encoder {where}: has no config.json; expected an AutoencoderTiny's folder or hub id")
    got = 2 ** (len(config.get("num_encoder_blocks", (1, 3, 3, 3))) - 1)
    reasons = {
        f"is a {config.get('_class_name')}": config.get("_class_name") != "AutoencoderTiny",
        f"has {config.get('latent_channels', 4)} latent channels": config.get("latent_channels", 4) != 4,
        "shifts its latents": bool(config.get("shift_factor")),
        f"shrinks images {got} times, the backbone's VAE {shrinks} times": got != shrinks,
    }
    for reason in (reason for reason, holds in reasons.items() if holds):
        raise BackboneError(
            f"tiny encoder {path}: {reason}; expected an AutoencoderTiny of the backbone's latents, "
            "such as madebyollin/taesd for Stable Diffusion 1.x and 2.x"
        )
    model = ModelFolder(path=path, subject=f"tiny encoder {path.parent}")
    loaded = model.load(AutoencoderTiny, torch_dtype=dtype).to(device).eval().requires_grad_(False)
    return loaded, identity, _digest((file.name, file) for file in model.files())  # the same wherever it lies


def _model(folder: Path, part: str) -> ModelFolder:
    return ModelFolder(path=folder / part, subject=f"backbone {folder}", stem=_STEMS[part])


def _config_path(folder: Path, part: str) -> Path:
    return folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")


def _read_config(folder: Path, part: str) -> dict[str, Any]:
    path = _config_path(folder, part)
    config = _read_json(path)
    if config is None:
        raise BackboneError(
            f"backbone {folder}: has no {part}/{path.name}; expected a folder in diffusers layout ({', '.join(_PARTS)})"
        )
    return config


def _read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON object, or None where there is no such file; BackboneError for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise BackboneError(f"backbone file {path}: not readable JSON ({first_line(error)})") from error
    if not isinstance(value, dict):
        raise BackboneError(f"backbone file {path}: got {type(value).__name__}, expected a JSON object")
    return value


def _digest(files: Iterable[tuple[str, Path]]) -> str:
    """Return the sha256 of files, each with a label."""
    made = hashlib.sha256()
    for label, path in files:
        made.update(f"{label}\0".encode())
        with path.open("rb") as stream:
            while block := stream.read(1 << 22):
                made.update(block)
    return made.hexdigest()


def _check_shape(folder: Path, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise BackboneError, with the reason, for what is not the UNet, VAE and text encoder of SD 1.x or 2.x."""
    unet, vae, text = configs["unet"], configs["vae"], configs["text_encoder"]
    scheduler = configs["scheduler"]
    prediction, steps = scheduler.get("prediction_type", "epsilon"), scheduler.get("num_train_timesteps", 1000)
    kind = text.get("model_type", "clip_text_model")
    noise = ("beta_start", "beta_end", "beta_schedule")
    sizes = (unet.get("sample_size"), unet.get("cross_attention_dim"))
    channels, latents = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    width, tokens = text.get("hidden_size"), text.get("max_position_embeddings")

    def any_of(*names: str) -> bool:
        return any(bool(unet.get(name)) for name in names)

    reasons = {
        f"its UNet is a {unet.get('_class_name')}": unet.get("_class_name") != "UNet2DConditionModel",
        f"its VAE is a {vae.get('_class_name')}": vae.get("_class_name") != "AutoencoderKL",
        "it has two text encoders and added conditions, as SDXL": any_of("addition_embed_type")
        or (folder / "text_encoder_2").is_dir(),
        "its UNet wants class labels": any_of("class_embed_type", "num_class_embeds"),
        "its UNet projects its conditions": any_of("encoder_hid_dim_type", "encoder_hid_dim"),
        f"its UNet takes {channels} channels (inpainting, or depth)": channels != 4,
        "its UNet has no one square latent size or text width": not all(isinstance(x, int) for x in sizes),
        "its UNet normalises or gates attention": any_of(
            "cross_attention_norm", "only_cross_attention", "dual_cross_attention"
        )
        or unet.get("attention_type", "default") != "default",
        f"its VAE has {latents} latent channels": latents != 4,
        f"its text encoder is {width} wide, its UNet's text {sizes[1]}": text.get("hidden_size", 512) != sizes[1],
        f"its text encoder holds {tokens} tokens": text.get("max_position_embeddings", TOKENS) != TOKENS,
        f"its text encoder is a {kind}": kind != "clip_text_model",
        f"its scheduler, a {scheduler.get('_class_name')}, has no {', '.join(noise)}": not scheduler.get(
            "trained_betas"
        )
        and not all(scheduler.get(name) for name in noise),
        "its scheduler follows flows": bool(scheduler.get("use_flow_sigmas")),
        f"its scheduler has {steps} timesteps": steps != 1000,
        f"it predicts {prediction}": prediction not in ("epsilon", "v_prediction"),
    }
    for reason in (reason for reason, holds in reasons.items() if holds):
        raise BackboneError(
            f"backbone {folder}: {reason}; expected Stable Diffusion 1.x or 2.x (text-to-image), "
            "such as SD 1.5 or SD 2.1-base"
        )
