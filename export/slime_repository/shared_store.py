"""Reads the files of shared segmenters in a repository.

REPO/segmenters/store/NAME.safetensors        what serves; its rename is the switch
REPO/segmenters/history/NAME/3.safetensors    what version 3 was, for a rollback
REPO/segmenters/checks/NAME/3/                what version 3 must answer (record.py), for a trial of other code
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slime_repository.contract import SEGMENTERS
from slime_repository.errors import RepositoryError
from slime_repository.record import Check, read_check
from slime_repository.shared_contract import STORE
from slime_store import Entry, Store, StoreError
from slime_store.store import ENDING, read

HISTORY, CHECKS = "history", "checks"
# What a file's description says beside what the served model reads of it.
VERSION, PUBLISHED, CONTENT_OF = "version", "published", "content_of"


def store_of(repository: Path) -> Store:
    """Return the store that the server looks segmenters up in."""
    return Store(repository / SEGMENTERS / STORE)


def history(repository: Path, name: str) -> Path:
    """Return the folder of a segmenter's earlier versions."""
    return repository / SEGMENTERS / HISTORY / name


def checks(repository: Path, name: str) -> Path:
    """Return the folder with what each version of a segmenter must answer, one folder a version."""
    return repository / SEGMENTERS / CHECKS / name


def names(repository: Path) -> list[str]:
    """Return the names of the shared segmenters, in order."""
    return store_of(repository).names()


def entry(repository: Path, name: str) -> Entry:
    """Return the segmenter's file that serves. Raises RepositoryError where it is damaged or missing."""
    return read_file(repository, store_of(repository).path(name))


def earlier(repository: Path, name: str, version: int) -> Entry:
    """Return the segmenter's file of an earlier version. Raises RepositoryError where it is damaged or missing."""
    return read_file(repository, file_of(history(repository, name), version))


def file_of(folder: Path, version: int) -> Path:
    """Return the file of an earlier version in a segmenter's folder of them."""
    return folder / f"{version}{ENDING}"


def members(repository: Path, group: str) -> list[str]:
    """Return the names of the segmenters that a group's ensemble serves."""
    return [name for name, told in descriptions(repository).items() if told["model"] == group]


def check_of(repository: Path, name: str, version: int | None = None) -> Check | None:
    """Return what this version of a segmenter must answer, or the one that serves; None where that was not kept."""
    wanted = versions(repository, name)[-1] if version is None else version
    folder = checks(repository, name) / str(wanted)
    return read_check(folder) if folder.is_dir() else None


def descriptions(repository: Path) -> dict[str, dict[str, Any]]:
    """Return what each shared segmenter says of itself. Raises RepositoryError for a damaged file."""
    return {name: dict(entry(repository, name).description) for name in names(repository)}


def versions(repository: Path, name: str) -> list[int]:
    """Return the versions of a shared segmenter that are there, lowest first; the last one serves."""
    found = {int(each.stem) for each in history(repository, name).glob(f"*{ENDING}")}
    if store_of(repository).path(name).exists():
        found.add(int(entry(repository, name).description[VERSION]))
    return sorted(found)


def read_file(repository: Path, path: Path) -> Entry:
    """Return the segmenter that a file holds, whatever its name. Raises RepositoryError for a damaged one."""
    try:
        return read(path)
    except StoreError as error:
        raise RepositoryError(f"repository {repository}: {error}") from error
