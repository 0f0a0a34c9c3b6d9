"""Models in diffusers layout on disk: which files count, what identifies them, and where they come from.

Only safetensors are ever read, never pickles or remote code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from slime_optimize.errors import BackboneError, first_line

DIFFUSERS = "diffusion_pytorch_model"
TRANSFORMERS = "model"


def used_files(model: Path, stem: str = DIFFUSERS) -> list[Path]:
    """The config and the weights that are loaded, so that other variants beside them change nothing."""
    weights = _plain_weights(model, stem) or list(model.glob(f"{stem}.fp16*.safetensors"))
    return [model / "config.json", *sorted(weights)]


def load_options(model: Path, stem: str = DIFFUSERS) -> dict[str, Any]:
    """For `from_pretrained`: plain weights where they are there, else the half-precision ones published beside them."""
    plain = bool(_plain_weights(model, stem))
    half = any(model.glob(f"{stem}.fp16*.safetensors"))
    if not plain and not half:
        raise BackboneError(
            f"backbone {model.parent}: has no {model.name}/{stem}.safetensors (pickled weights are never read)"
        )
    return {"use_safetensors": True, "local_files_only": True, "variant": None if plain else "fp16"}


def digest(files: Iterable[tuple[str, Path]]) -> str:
    """sha256 over labelled files."""
    made = hashlib.sha256()
    for label, path in files:
        made.update(f"{label}\0".encode())
        with path.open("rb") as stream:
            while block := stream.read(1 << 22):
                made.update(block)
    return made.hexdigest()


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is no such file; BackboneError for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise BackboneError(f"backbone file {path}: not readable JSON ({first_line(error)})") from error
    if not isinstance(value, dict):
        raise BackboneError(f"backbone file {path}: got {type(value).__name__}, expected a JSON object")
    return value


def locate(name: str, wanted: Sequence[str], subject: str, also: str = "") -> tuple[Path, str]:
    """A folder, or the `wanted` files of a hub id, and the id to find it by again.

    `subject` is what is looked for, `also` what else could have been said, for BackboneError.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder, str(folder.resolve())
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise BackboneError(
            f"{subject} {name}: no such folder; expected {also}a folder in diffusers layout, or a hub id"
        )
    return _download(name, wanted, subject, also), name


def _plain_weights(model: Path, stem: str) -> list[Path]:
    """One file, or numbered ones."""
    return [*model.glob(f"{stem}.safetensors"), *model.glob(f"{stem}-0*.safetensors")]


def _download(hub_id: str, wanted: Sequence[str], subject: str, also: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(wanted)))
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        raise BackboneError(
            f"{subject} {hub_id}: neither a folder nor a hub id that can be fetched ({first_line(error)}); "
            f"expected {also}a folder in diffusers layout, or a hub id with the network there"
        ) from error
