"""The code of this project's own Python models (preprocess, was, segmenters): repositories get copies of it.

Two versions of a model are the same when the code that runs in them is: comments, docstrings, blank lines and the way
lines are broken do not count.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType

import slime_image
import slime_store
import slime_was
from slime_repository import layout
from slime_repository.contract import PREPROCESS, SEGMENTERS, WAS
from slime_repository.errors import RepositoryError

# What each imports; the first is the model's own, and lies beside its versions.
PACKAGES: dict[str, tuple[ModuleType, ...]] = {
    PREPROCESS: (slime_image,),
    WAS: (slime_was,),
    SEGMENTERS: (slime_store, slime_image),
}
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def source_model(model: str) -> Path:
    """Return this project's own folder of a Python model: in the installed package, or else in the checkout.

    Raises RepositoryError where it is in neither.
    """
    packaged = Path(__file__).resolve().with_name("model_repository") / model
    checkout = _package(PACKAGES[model][0]).parent
    for folder in (packaged, checkout):
        if layout.versions(folder):
            return folder
    raise RepositoryError(f"model {model}: its code is in neither {packaged} nor {checkout}; install slime-serve again")


def wanted_files(model: str) -> dict[str, bytes]:
    """Return name -> content of what a version of this model should hold: model.py and the packages it imports."""
    source = source_model(model)
    found = {"model.py": (source / str(layout.versions(source)[-1]) / "model.py").read_bytes()}
    for package in PACKAGES[model]:
        found |= _files(_package(package), package.__name__)
    return found


def files_of(model: Path, version: int, packages: Iterable[str]) -> dict[str, bytes]:
    """Return name -> content of a version in a repository: model.py, and its packages beside it or in the model's."""
    folder = model / str(version)
    source = folder / "model.py"
    found = {source.name: source.read_bytes()} if source.is_file() else {}
    for package in packages:
        found |= _files(folder / package if (folder / package).is_dir() else model / package, package)
    return found


def is_current(model: Path, version: int, kind: str) -> bool:
    """Return whether this version runs the code that this project has for models of `kind`."""
    return same_code(files_of(model, version, [each.__name__ for each in PACKAGES[kind]]), wanted_files(kind))


def same_code(one: Mapping[str, bytes], other: Mapping[str, bytes]) -> bool:
    """Return whether the same code runs in both; what is not Python counts byte by byte."""
    return one.keys() == other.keys() and all(
        content == other[name] or (name.endswith(".py") and _meaning(content) == _meaning(other[name]))
        for name, content in one.items()
    )


def is_own(repository: Path, model: str) -> bool:
    """Return whether `repository`/`model` is the project's own code, not a copy of it: never to be moved out."""
    if model not in PACKAGES or not (repository / model).exists():
        return False
    folder = _package(PACKAGES[model][0]).parent
    return folder.exists() and (repository / model).samefile(folder)


def published(repository: Path) -> list[Path]:
    """Return the models in `repository` that were published into it, which are all but the project's own code."""
    return [repository / name for name in layout.models(repository) if not is_own(repository, name)]


def _meaning(source: bytes) -> str:
    """Return what a Python file does, as text: its syntax tree without docstrings. Raises no error for broken ones."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return repr(source)
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return ast.dump(tree)


def _files(folder: Path, name: str) -> dict[str, bytes]:
    """Return the files of a package, by paths that begin with its name."""
    there = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {f"{name}/{place}": path.read_bytes() for place, path in there.items() if layout.CACHE not in path.parts}


def _package(package: ModuleType) -> Path:
    assert package.__file__
    return Path(package.__file__).resolve().parent
