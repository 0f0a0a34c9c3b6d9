"""What a repository has in common with object stores: REPO/store.json, which neither Triton nor the manifest looks at.

    {"format": 1, "stores": {"s3://models/cars": {"content": "9f2c…", "pushing": "", "pulling": false}}}

"content" is the digest (object_store.digest) of what both held last. A push may replace that alone in the store, and a
pull that alone in the repository: the rest is somebody's change. "pushing" is the digest of what a push was about to
make the store hold, and "pulling" is true from a pull's first change to its end; both may have been killed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slime_repository import layout, manifest, object_store, served_code
from slime_repository.errors import RepositoryError
from slime_repository.manifest import Entry

FILE = "store.json"
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Synced:
    """What is known of one store."""

    content: str = ""
    pushing: str = ""
    pulling: bool = False


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a repository holds: all files by path, and the versions that have none (those of shared ensembles)."""

    files: Mapping[str, Entry]
    folders: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Return what tells this content from any other."""
        return object_store.digest(self.files, self.folders)


def contents(repository: Path) -> Contents:
    """Return what the repository holds by its manifest; nothing where there is none.

    Raises RepositoryError for a manifest that cannot be read.
    """
    if not repository.is_dir():
        return Contents(files={}, folders=())
    files = dict(manifest.read(repository, lambda: served_code.published(repository)).files)
    models = layout.models(repository)
    # The manifest leaves them out, because they change with the checkout.
    own = [repository / model for model in models if served_code.is_own(repository, model)]
    files |= manifest.entries(repository, own)
    filled = {tuple(path.split("/")[:2]) for path in files}
    versions = [(model, str(each)) for model in models for each in layout.versions(repository / model)]
    return Contents(files=files, folders=tuple("/".join(each) for each in versions if each not in filled))


def read(repository: Path, url: str) -> Synced:
    """Return what the repository has in common with the store at `url`."""
    return Synced(**_stores(repository).get(url, {}))


def write(repository: Path, staging: Path, url: str, synced: Synced) -> None:
    """Keep it; `staging` is a folder on the repository's filesystem. Without anything in common no file is left."""
    stores = {**_stores(repository), url: asdict(synced)}
    if synced == Synced():
        del stores[url]
    if not stores:
        (repository / FILE).unlink(missing_ok=True)
        return
    waiting = staging / FILE
    waiting.write_text(json.dumps({"format": _FORMAT, "stores": stores}) + "\n", encoding="utf-8")
    waiting.replace(repository / FILE)


def _stores(repository: Path) -> dict[str, Any]:
    path = repository / FILE
    try:
        if not path.exists():
            return {}
        facts = json.loads(path.read_text(encoding="utf-8"))
        if facts["format"] != _FORMAT:
            raise ValueError(f"format {facts['format']}, expected {_FORMAT}")
        return dict(facts["stores"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RepositoryError(
            f"repository {repository}: {FILE} cannot be read ({error}); delete it, and pull or push with --replace"
        ) from error
