"""Reads a model repository's folders: which versions there are, what an ensemble is pinned to, whose backbone it is.

    REPO/preprocess/  was/  vae_encoder/  NAME_unet/  NAME/      each config.pbtxt and numbered versions
    REPO/NAME/3/                                                 what version 3 was made of (record.py)

Only configurations that can be read count; a model with another is no segmenter. Changes nothing.
"""

from __future__ import annotations

from pathlib import Path

from slime_repository import config
from slime_repository.config import pins as pins
from slime_repository.contract import OLD_TENSORS, VAE_ENCODER, is_encoder, unet_name
from slime_repository.errors import RepositoryError
from slime_repository.shared_contract import is_group
from slime_repository.variant import UNET_SUFFIXES

CONFIG = "config.pbtxt"
RECORDED_CONFIG = "ensemble.pbtxt"
CACHE = "__pycache__"


def check_name(name: str) -> str:
    """Return `name`, or raise RepositoryError where no segmenter can be called so."""
    try:
        unet_name(name)
    except ValueError as error:
        raise RepositoryError(str(error).replace("choose another name", "give another --name")) from error
    return name


def require_repository(repository: Path) -> None:
    """Raise RepositoryError where there is no such folder."""
    if not repository.is_dir():
        raise RepositoryError(f"repository {repository}: no such folder; export/build.py makes one")


def require_current(repository: Path) -> None:
    """Raise RepositoryError for a repository made before its models' tensors were renamed.

    Its models cannot be joined with today's. They lie in it with their own code, so it serves on as it is.
    """
    for model in models(repository):
        try:
            old = sorted(OLD_TENSORS & {*config.tensor_names(config_text(repository / model))})
        except RepositoryError:  # somebody else's model, or a damaged one, which tells nothing of its time
            continue
        if old:
            raise RepositoryError(
                f"repository {repository}: was made before tensors were renamed ({model} has {', '.join(old)}), so "
                "nothing can be added to it or upgraded in it; it serves on as it is; make it anew by exporting each "
                "of its segmenters: python export/build.py DIR --repository NEW_REPO"
            )


def versions(model: Path) -> list[int]:
    """Return the numbered versions in a model's folder, lowest first; none where there is no such folder."""
    if not model.is_dir():
        return []
    return sorted(int(each.name) for each in model.iterdir() if each.name.isdecimal() and each.is_dir())


def config_text(model: Path) -> str:
    """Return the model's config.pbtxt, or nothing where there is none that is text."""
    try:
        return (model / CONFIG).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
        return ""


def pinned(ensemble: Path) -> dict[str, int]:
    """Return model -> the version that the ensemble in this folder names; nothing for anything but an ensemble."""
    return pins(config_text(ensemble))


def parameters(model: Path) -> dict[str, str]:
    """Return what the model's configuration tells clients. Raises RepositoryError where it cannot be read."""
    try:
        return config.parameters(config_text(model))
    except RepositoryError as error:
        raise RepositoryError(f"model {model}: its {CONFIG} cannot be read ({error}); publish it again") from error


def models(repository: Path) -> list[str]:
    """Return the names of all models in `repository`, in order."""
    return sorted(each.parent.name for each in repository.glob(f"*/{CONFIG}"))


def ensembles(repository: Path) -> list[str]:
    """Return the names of the ensembles in `repository`, in order: baked segmenters, and groups of shared ones."""
    return [name for name in models(repository) if unet_of(repository / name)]


def segmenters(repository: Path) -> list[str]:
    """Return the names of the segmenters in `repository` that are baked in, in order."""
    return [name for name in ensembles(repository) if not is_group(name)]


def groups(repository: Path) -> list[str]:
    """Return the names of the ensembles of shared segmenters, in order."""
    return [name for name in ensembles(repository) if is_group(name)]


def unet_of(ensemble: Path) -> str | None:
    """Return the model that gives this ensemble's maps, or None for anything but an ensemble."""
    found = pinned(ensemble)
    return next((model for model in (ensemble.name + suffix for suffix in UNET_SUFFIXES) if model in found), None)


def unets(repository: Path, name: str) -> list[str]:
    """Return the segmenter's own networks that lie there, used or not."""
    names = {name + suffix for suffix in UNET_SUFFIXES}
    return sorted(each.name for each in repository.iterdir() if each.name in names and each.is_dir())


def recorded(ensemble: Path, version: int) -> str:
    """Return the config.pbtxt that made this version live, or nothing where it was published before they were kept."""
    path = ensemble / str(version) / RECORDED_CONFIG
    return path.read_text(encoding="utf-8") if path.exists() else ""


def live_version(ensemble: Path) -> int | None:
    """Return the version whose configuration is the one that serves; None for a folder without versions."""
    there, served = versions(ensemble), config_text(ensemble)
    return max((each for each in there if recorded(ensemble, each) == served), default=max(there, default=None))


def used(repository: Path, *names: str) -> set[tuple[str, int]]:
    """Return the (model, version) that these ensembles, or all, serve with or could be rolled back to."""
    found: set[tuple[str, int]] = set()
    for name in names or ensembles(repository):
        folder = repository / name
        for text in (config_text(folder), *(recorded(folder, version) for version in versions(folder))):
            found.update(pins(text).items())
    return found


def models_of(repository: Path, name: str) -> set[str]:
    """Return every model that a version of this segmenter is, or was, made of."""
    return {model for model, _ in used(repository, name)} | set(unets(repository, name))


def users(repository: Path, model: str, *, besides: str | None = None) -> dict[str, int]:
    """Return ensemble -> the version of `model` it is pinned to, for all ensembles but `besides`."""
    found = {name: pinned(repository / name) for name in ensembles(repository) if name != besides}
    return {name: pins[model] for name, pins in found.items() if model in pins}


def encoder_of(
    repository: Path, backbone_hash: str, model: str = VAE_ENCODER, tiny_hash: str | None = None
) -> Path | None:
    """Return the version folder of the encoder `model` that is there already, or None.

    Raises RepositoryError where the repository holds another backbone, or another tiny encoder of it, or was made
    before tensors were renamed.
    """
    require_current(repository)
    for each in filter(is_encoder, models(repository)):
        _require_same(repository, each, "backbone", "backbone", backbone_hash)
    found = versions(repository / model)
    if found and tiny_hash:
        _require_same(repository, model, "tiny_encoder", "tiny encoder", tiny_hash)
    return repository / model / str(found[-1]) if found else None


def _require_same(repository: Path, encoder: str, parameter: str, what: str, wanted: str) -> None:
    got = parameters(repository / encoder).get(parameter, "an unknown one")
    if got != wanted:
        raise RepositoryError(
            f"repository {repository}: holds segmenters of {what} {got[:12]}, this one is of {wanted[:12]}; a "
            f"repository holds one {what}, give another --repository"
        )
