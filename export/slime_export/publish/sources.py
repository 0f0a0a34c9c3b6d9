"""This project's own Python models (preprocess, was, segmenters): the code that repositories get copies of."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import slime_image
import slime_store
import slime_was
from slime_export.errors import ExportError
from slime_export.publish import layout
from slime_repository.contract import PREPROCESS, SEGMENTERS, WAS

# What each imports; the first is the model's own, and lies beside its versions.
PACKAGES: dict[str, tuple[ModuleType, ...]] = {
    PREPROCESS: (slime_image,),
    WAS: (slime_was,),
    SEGMENTERS: (slime_store, slime_image),
}


def source_model(model: str) -> Path:
    """This project's own folder of a Python model. Raises ExportError where only its package is installed."""
    folder = _folder(model)
    if not layout.versions(folder):
        raise ExportError(
            f"model {model}: its code is not beside {folder}; export from a checkout installed with pip install -e"
        )
    return folder


def wanted_files(model: str) -> dict[str, bytes]:
    """Content by name of what a version of this model should hold: model.py and the packages it imports."""
    source = source_model(model)
    found = {"model.py": (source / str(layout.versions(source)[-1]) / "model.py").read_bytes()}
    for package in PACKAGES[model]:
        found |= layout.files(_package(package), package.__name__)
    return found


def is_own(repository: Path, model: str) -> bool:
    """Whether `repository`/`model` is the project's own code, not a copy of it: never to be moved out."""
    if model not in PACKAGES or not (repository / model).exists():
        return False
    folder = _folder(model)
    return folder.exists() and (repository / model).samefile(folder)


def published(repository: Path) -> list[Path]:
    """The models in `repository` that were published into it, which are all but the project's own code."""
    folders = sorted(config.parent for config in repository.glob(f"*/{layout.CONFIG}"))
    return [each for each in folders if not is_own(repository, each.name)]


def _folder(model: str) -> Path:
    return _package(PACKAGES[model][0]).parent


def _package(package: ModuleType) -> Path:
    assert package.__file__
    return Path(package.__file__).resolve().parent
