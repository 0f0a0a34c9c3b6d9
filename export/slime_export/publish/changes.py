"""Changes a repository so that each step can be undone: each is one rename, and is told in the manifest beforehand.

Everything new is prepared in a staging folder beside the repository: inside, Triton would take it for a model, and a
rename needs the same filesystem. So a kill at any moment leaves whole models only.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from slime_repository import layout, manifest
from slime_repository.manifest import Entry, Manifest


class Changes:
    """Renames inside a with-block. They are kept when it ends well, and undone in reverse order when it raises.

    `models`: the folders that a repository without a manifest gets one of. The caller holds the repository's lock.
    """

    def __init__(self, repository: Path, staging: Path, models: Callable[[], Iterable[Path]] = lambda: ()) -> None:
        self._repository = repository
        self._staging = staging
        self._models = models
        self._undo = ExitStack()
        self._count = 0

    def __enter__(self) -> Changes:
        path = self._repository / manifest.FILE
        self._before = path.read_bytes() if path.exists() else None
        self.manifest = manifest.read(self._repository, self._models)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            try:
                self._tell(self.manifest.settled())
            except OSError:
                self._back()
                raise
            self._undo.pop_all()
        else:
            self._back()

    def on_undo(self, action: Callable[[], object]) -> None:
        """Also do `action` when the block raises, after what comes later has been undone."""
        self._undo.callback(action)

    def place(self, staged: Path, target: Path) -> None:
        """Move a file or folder prepared in the staging folder to `target`, which does not exist."""
        place = target.relative_to(self._repository)
        if staged.is_file():
            self._announce({place.as_posix(): manifest.entry(staged)})
        else:
            found = manifest.entries(staged, [staged])
            self._announce({(place / path).as_posix(): entry for path, entry in found.items()})
        rename(staged, target)
        self.on_undo(lambda: rename(target, self._aside()))

    def take(self, target: Path) -> None:
        """Move `target` out of the repository; it is deleted with the staging folder."""
        place = target.relative_to(self._repository).as_posix()
        known = {**self.manifest.files, **self.manifest.changing}
        leaving = [path for path in known if path == place or path.startswith(f"{place}/")]
        # What came with these changes may be missing as it is, and may be there until it has left.
        self._announce(dict.fromkeys(path for path in leaving if path in self.manifest.files))
        aside = self._aside()
        rename(target, aside)
        self.on_undo(lambda: rename(aside, target))
        self._announce(dict.fromkeys(path for path in leaving if path not in self.manifest.files))

    def write(self, target: Path, content: str | bytes) -> None:
        """Put a small file with this content in place of `target`, in one step."""
        before = target.read_bytes() if target.exists() else None
        waiting = self._written(content.encode() if isinstance(content, str) else content)
        self._announce({target.relative_to(self._repository).as_posix(): manifest.entry(waiting)})
        rename(waiting, target)
        # Written anew, because Triton takes a file with an older time for unchanged.
        self.on_undo(lambda: target.unlink() if before is None else rename(self._written(before), target))

    def _announce(self, entries: Mapping[str, Entry | None]) -> None:
        if entries:
            self._tell(self.manifest.announced(entries))

    def _tell(self, told: Manifest) -> None:
        rename(self._written(told.text().encode()), self._repository / manifest.FILE)
        self.manifest = told

    def _back(self) -> None:
        self._undo.close()
        path = self._repository / manifest.FILE
        if self._before is not None:
            rename(self._written(self._before), path)
        else:
            path.unlink(missing_ok=True)

    def _written(self, content: bytes) -> Path:
        waiting = self._aside()
        waiting.write_bytes(content)
        return waiting

    def _aside(self) -> Path:
        self._count += 1
        # A leading dot, which no model's name has.
        return self._staging / f".aside-{self._count}"


def rename(source: Path, target: Path) -> None:
    """Rename: the one way anything in a repository changes. It replaces a file, never a folder with content."""
    source.replace(target)


def linked(source: Path, target: Path) -> Path:
    """Copy a folder by hard links, which take neither space nor time, and return `target`."""
    return Path(shutil.copytree(source, target, copy_function=os.link, ignore=shutil.ignore_patterns(layout.CACHE)))
