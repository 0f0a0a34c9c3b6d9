"""This project's own Python models, `preprocess` and `was`: the code that repositories get copies of."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import slime_image
import slime_was
from slime_export import layout
from slime_export.errors import ExportError
from slime_was.contract import PREPROCESS, WAS

PACKAGES: dict[str, ModuleType] = {PREPROCESS: slime_image, WAS: slime_was}


def source_model(model: str) -> Path:
    """This project's own folder of a Python model. Raises ExportError where only its package is installed."""
    folder = _folder(model)
    if not layout.versions(folder):
        raise ExportError(
            f"model {model}: its code is not beside {folder}; export from a checkout installed with pip install -e"
        )
    return folder


def wanted_files(model: str) -> dict[str, bytes]:
    """Content by name of what a version of this model should hold: model.py and its package."""
    source = source_model(model)
    return layout.python_files(source, layout.versions(source)[-1], PACKAGES[model].__name__)


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
    package_file = PACKAGES[model].__file__
    assert package_file
    return Path(package_file).resolve().parents[1]
