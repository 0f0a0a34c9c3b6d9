"""The tiny encoder of a backbone: diffusers' AutoencoderTiny, which gives the VAE's latents for a fraction of its work.

It lies in the backbone's folder as `tiny_vae/`, or anywhere else as a folder or a hub id (madebyollin/taesd for SD 1.x
and 2.x). Which one a segmenter was made with is part of the segmenter: another's latents differ.

Shape suffixes: B batch, S image side, h, w latent sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slime_optimize.backbone_folder import DIFFUSERS, digest, load_options, locate, read_json, used_files
from slime_optimize.errors import BackboneError, first_line

FOLDER = "tiny_vae"
_WANTED = [f"{folder}{name}" for folder in ("", f"{FOLDER}/") for name in ("config.json", f"{DIFFUSERS}.safetensors")]


@dataclass(frozen=True, kw_only=True)
class TinyName:
    """`hash` is the content's; `id` a folder or hub id, None where it lies in the backbone's own folder."""

    id: str | None
    hash: str


@dataclass(frozen=True, kw_only=True)
class TinyEncoder:
    """A loaded, frozen AutoencoderTiny."""

    name: TinyName
    model: Any

    def encode(self, pixels_B3SS: Tensor) -> Tensor:
        """Pixels in [-1, 1], which diffusers brings to this model's own [0, 1] -> scaled latents (B,4,h,w)."""
        latents: Tensor = self.model.encode(pixels_B3SS).latents * self.model.config.scaling_factor
        return latents


def load_tiny(
    backbone: Path, where: str | None, shrinks: int, device: str | torch.device, dtype: torch.dtype
) -> TinyEncoder | None:
    """The encoder at `where`, a folder or hub id, else the one in the `backbone`'s folder, else None.

    Its images must shrink `shrinks` times, as the VAE's do. Raises BackboneError, in one line, for what is not there,
    unreadable, or of another shape.
    """
    folder, identity = locate(where, _WANTED, "tiny encoder") if where else (backbone, None)
    model = folder if where and (folder / "config.json").is_file() else folder / FOLDER
    config = read_json(model / "config.json")
    if config is None:
        if not where:
            return None
        raise BackboneError(f"tiny encoder {where}: has no config.json; expected an AutoencoderTiny's folder or hub id")
    _check_shape(model, config, shrinks)
    loaded = _load(model, dtype).to(device).eval().requires_grad_(False)
    return TinyEncoder(name=TinyName(id=identity, hash=_hash(model)), model=loaded)


def _hash(model: Path) -> str:
    """The same wherever it lies."""
    return digest((path.name, path) for path in used_files(model))


def _load(model: Path, dtype: torch.dtype) -> Any:
    from diffusers import AutoencoderTiny
    from diffusers.utils import logging

    options, verbosity = load_options(model), logging.get_verbosity()
    logging.set_verbosity_error()  # it writes a key into every config that it then warns of
    try:
        return AutoencoderTiny.from_pretrained(model, torch_dtype=dtype, **options)
    except Exception as error:  # foreign loaders raise of every kind; the user gets one line
        raise BackboneError(f"tiny encoder {model}: its weights cannot be loaded ({first_line(error)})") from error
    finally:
        logging.set_verbosity(verbosity)


def _check_shape(model: Path, config: Mapping[str, Any], shrinks: int) -> None:
    got = 2 ** (len(config.get("num_encoder_blocks", (1, 3, 3, 3))) - 1)
    reasons = {
        f"is a {config.get('_class_name')}": config.get("_class_name") != "AutoencoderTiny",
        f"has {config.get('latent_channels', 4)} latent channels": config.get("latent_channels", 4) != 4,
        "shifts its latents": bool(config.get("shift_factor")),
        f"shrinks images {got} times, the backbone's VAE {shrinks} times": got != shrinks,
    }
    for reason, holds in reasons.items():
        if holds:
            raise BackboneError(
                f"tiny encoder {model}: {reason}; expected an AutoencoderTiny of the backbone's latents, "
                "such as madebyollin/taesd for Stable Diffusion 1.x and 2.x"
            )
