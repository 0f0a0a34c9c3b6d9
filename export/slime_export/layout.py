"""Reads a model repository: which versions lie there, which an ensemble is pinned to, whose backbone it holds.

    REPO/preprocess/  was/  vae_encoder/  NAME_unet/  NAME/      each config.pbtxt and numbered versions

Only the config files this project generates are understood; others are no segmenters. Changes nothing.
"""

from __future__ import annotations

import re
from pathlib import Path

from slime_export.errors import ExportError
from slime_was.contract import VAE_ENCODER, unet_name
from slime_was.form import UNET_SUFFIXES

CONFIG = "config.pbtxt"
CACHE = "__pycache__"
_STEP = re.compile(r'model_name:\s*"([^"]+)"\s*model_version:\s*(\d+)')
_BACKBONE = re.compile(r'key:\s*"backbone"\s*value\s*\{\s*string_value:\s*"([^"]*)"')


def check_name(name: str) -> str:
    """`name`, or ExportError where no model can be called so."""
    try:
        unet_name(name)
    except ValueError as error:
        raise ExportError(str(error).replace("choose another name", "give another --name")) from error
    return name


def versions(model: Path) -> list[int]:
    """The numbered versions in a model's folder, lowest first; none where there is no such folder."""
    if not model.is_dir():
        return []
    return sorted(int(each.name) for each in model.iterdir() if each.name.isdecimal() and each.is_dir())


def pinned(ensemble: Path) -> dict[str, int]:
    """Model -> the version the ensemble in this folder names; empty for anything but an ensemble."""
    return {name: int(version) for name, version in _STEP.findall(config_text(ensemble))}


def segmenters(repository: Path) -> list[str]:
    """Names of the ensembles in `repository`, in order."""
    if not repository.is_dir():
        return []
    return sorted(each.name for each in repository.iterdir() if unet_of(each))


def unet_of(ensemble: Path) -> str | None:
    """The model that gives this ensemble's maps, or None for anything but an ensemble."""
    pins = pinned(ensemble)
    return next((model for model in (ensemble.name + suffix for suffix in UNET_SUFFIXES) if model in pins), None)


def users(repository: Path, model: str, *, besides: str) -> dict[str, int]:
    """Segmenter -> the version of `model` it is pinned to, for all segmenters but `besides`."""
    pins = {name: pinned(repository / name) for name in segmenters(repository) if name != besides}
    return {name: pin[model] for name, pin in pins.items() if model in pin}


def config_text(model: Path) -> str:
    """The model's config.pbtxt, or nothing where there is none."""
    try:
        return (model / CONFIG).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return ""


def encoder_of(repository: Path, backbone_hash: str) -> Path | None:
    """The version folder of the VAE encoder that is there already, or None.

    Raises ExportError where the repository holds another backbone.
    """
    model = repository / VAE_ENCODER
    found = versions(model)
    if not found:
        return None
    match = _BACKBONE.search(config_text(model))
    got = match[1] if match else "an unknown one"
    if got != backbone_hash:
        raise ExportError(
            f"repository {repository}: holds segmenters of backbone {got[:12]}, this one is of "
            f"{backbone_hash[:12]}; a repository holds one backbone, give another --repository"
        )
    return model / str(found[-1])


def python_files(model: Path, version: int, package: str) -> dict[str, bytes]:
    """Content of a Python model by name: model.py and its package, inside the version's folder or beside it."""
    folder = model / str(version)
    base = folder / package if (folder / package).is_dir() else model / package
    found = {"model.py": folder / "model.py"}
    found |= {f"{package}/{path.relative_to(base).as_posix()}": path for path in sorted(base.rglob("*"))}
    return {name: path.read_bytes() for name, path in found.items() if path.is_file() and CACHE not in path.parts}
