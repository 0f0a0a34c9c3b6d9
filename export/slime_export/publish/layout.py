"""Reads a model repository: which versions lie there, which an ensemble is pinned to, whose backbone it holds.

    REPO/preprocess/  was/  vae_encoder/  NAME_unet/  NAME/      each config.pbtxt and numbered versions
    REPO/NAME/3/                                                 what version 3 was made of (record.py)

Only the config files this project generates are understood; others are no segmenters. Changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from slime_export.errors import ExportError
from slime_repository.contract import VAE_ENCODER, is_encoder, unet_name
from slime_repository.shared_contract import is_group
from slime_repository.variant import UNET_SUFFIXES

CONFIG = "config.pbtxt"
RECORDED_CONFIG = "ensemble.pbtxt"
CACHE = "__pycache__"
_STEP = re.compile(r'model_name:\s*"([^"]+)"\s*model_version:\s*(\d+)')
_HASH = r'key:\s*"{}"\s*value\s*\{{\s*string_value:\s*"([^"]*)"'
_BACKBONE, _TINY = (re.compile(_HASH.format(key)) for key in ("backbone", "tiny_encoder"))


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
    return pins(config_text(ensemble))


def pins(config: str) -> dict[str, int]:
    """As `pinned`, of a config.pbtxt's text."""
    return {name: int(version) for name, version in _STEP.findall(config)}


def pinned_to(config: str, versions: Mapping[str, int]) -> str:
    """The ensemble's configuration with these versions in place of its own."""
    return _STEP.sub(lambda step: step[0].removesuffix(step[2]) + str(versions[step[1]]), config)


def segmenters(repository: Path) -> list[str]:
    """Names of the segmenters in `repository` that are baked in, in order."""
    return [name for name in ensembles(repository) if not is_group(name)]


def ensembles(repository: Path) -> list[str]:
    """Names of the ensembles in `repository`, in order: baked segmenters, and groups of shared ones."""
    if not repository.is_dir():
        return []
    return sorted(each.name for each in repository.iterdir() if unet_of(each))


def require_repository(repository: Path) -> None:
    """Raises ExportError where there is no such folder."""
    if not repository.is_dir():
        raise ExportError(f"repository {repository}: no such folder; export/build.py makes one")


def models(repository: Path) -> list[str]:
    """Names of all models in `repository`, in order."""
    return sorted(config.parent.name for config in repository.glob(f"*/{CONFIG}"))


def unet_of(ensemble: Path) -> str | None:
    """The model that gives this ensemble's maps, or None for anything but an ensemble."""
    found = pinned(ensemble)
    return next((model for model in (ensemble.name + suffix for suffix in UNET_SUFFIXES) if model in found), None)


def unets(repository: Path, name: str) -> list[str]:
    """The segmenter's own networks that lie there, used or not."""
    names = {name + suffix for suffix in UNET_SUFFIXES}
    return sorted(each.name for each in repository.iterdir() if each.name in names and each.is_dir())


def recorded(ensemble: Path, version: int) -> str:
    """The config.pbtxt that made this version live, or nothing where it was published before they were kept."""
    path = ensemble / str(version) / RECORDED_CONFIG
    return path.read_text(encoding="utf-8") if path.exists() else ""


def live_version(ensemble: Path) -> int | None:
    """The version whose configuration is the one that serves; None for a folder without versions."""
    there = versions(ensemble)
    served = config_text(ensemble)
    return max((each for each in there if recorded(ensemble, each) == served), default=max(there, default=None))


def models_of(repository: Path, name: str) -> set[str]:
    """Every model that a version of this segmenter is, or was, made of."""
    ensemble = repository / name
    texts = [config_text(ensemble), *(recorded(ensemble, version) for version in versions(ensemble))]
    return {model for text in texts for model in pins(text)} | set(unets(repository, name))


def used(repository: Path) -> set[tuple[str, int]]:
    """(model, version) of everything that a segmenter serves with or could be rolled back to."""
    found: set[tuple[str, int]] = set()
    for name in ensembles(repository):
        ensemble = repository / name
        texts = [config_text(ensemble), *(recorded(ensemble, version) for version in versions(ensemble))]
        found |= {pin for text in texts for pin in pins(text).items()}
    return found


def users(repository: Path, model: str, *, besides: str) -> dict[str, int]:
    """Segmenter -> the version of `model` it is pinned to, for all segmenters but `besides`."""
    found = {name: pinned(repository / name) for name in ensembles(repository) if name != besides}
    return {name: versions[model] for name, versions in found.items() if model in versions}


def config_text(model: Path) -> str:
    """The model's config.pbtxt, or nothing where there is none."""
    try:
        return (model / CONFIG).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return ""


def parsed(config: str) -> Any:
    """The text of a config.pbtxt as Triton's ModelConfig message."""
    # Imported here, because it comes with tritonclient, which publishing without a server does not need.
    from google.protobuf import text_format  # type: ignore[import-untyped]
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse(config, model_config_pb2.ModelConfig())


def parameters(model: Path) -> dict[str, str]:
    """What the model's configuration tells clients. Raises ExportError where it cannot be read."""
    try:
        found = parsed(config_text(model)).parameters
    except ValueError as error:  # protobuf's ParseError is one
        raise ExportError(f"model {model}: its {CONFIG} cannot be read ({error}); publish it again") from error
    return {key: value.string_value for key, value in found.items()}


def encoder_of(
    repository: Path, backbone_hash: str, model: str = VAE_ENCODER, tiny_hash: str | None = None
) -> Path | None:
    """The version folder of the encoder `model` that is there already, or None.

    Raises ExportError where the repository holds another backbone, or another tiny encoder of it.
    """
    for each in filter(is_encoder, models(repository)):
        _check_backbone(repository, each, backbone_hash)
    found = versions(repository / model)
    if found and tiny_hash:
        _check_tiny(repository, model, tiny_hash)
    return repository / model / str(found[-1]) if found else None


def _check_backbone(repository: Path, encoder: str, backbone_hash: str) -> None:
    match = _BACKBONE.search(config_text(repository / encoder))
    got = match[1] if match else "an unknown one"
    if got != backbone_hash:
        raise ExportError(
            f"repository {repository}: holds segmenters of backbone {got[:12]}, this one is of "
            f"{backbone_hash[:12]}; a repository holds one backbone, give another --repository"
        )


def _check_tiny(repository: Path, encoder: str, tiny_hash: str) -> None:
    match = _TINY.search(config_text(repository / encoder))
    got = match[1] if match else "an unknown one"
    if got != tiny_hash:
        raise ExportError(
            f"repository {repository}: holds segmenters of tiny encoder {got[:12]}, this one is of {tiny_hash[:12]}; "
            "a repository holds one tiny encoder, give another --repository"
        )


def python_files(model: Path, version: int, packages: Iterable[str]) -> dict[str, bytes]:
    """Content of a Python model by name: model.py and its packages, inside the version's folder or beside it."""
    folder = model / str(version)
    source = folder / "model.py"
    found = {source.name: source.read_bytes()} if source.is_file() else {}
    for package in packages:
        found |= files(folder / package if (folder / package).is_dir() else model / package, package)
    return found


def files(folder: Path, name: str) -> dict[str, bytes]:
    """Content of a package's files, by paths that begin with its name."""
    there = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {f"{name}/{place}": path.read_bytes() for place, path in there.items() if CACHE not in path.parts}
