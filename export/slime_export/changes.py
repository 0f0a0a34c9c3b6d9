"""Changes to a repository that can be taken back, each of them one rename.

Everything new is made ready in a staging folder beside the repository (inside it Triton would take it for a model,
and a rename needs the same filesystem). So a kill at any moment leaves whole models only.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

from slime_export.errors import ExportError


@contextmanager
def staging(repository: Path) -> Iterator[Path]:
    """An empty folder beside `repository`, which is made if missing and locked against other publications.

    Afterwards the folder is gone, and so is a repository that was made here and stayed empty. Raises ExportError
    where another process is publishing, or the folders cannot be made.
    """
    root = repository.resolve()
    made = not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ExportError(f"repository {repository}: cannot be a folder ({error.strerror}); give another") from error
    folder = root.with_name(f".{root.name}.staging")
    try:
        _lock(lock, repository)
        # What lies there was left by a process that was killed: nobody else holds the lock.
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)
        if made and not any(root.iterdir()):
            root.rmdir()


def _lock(descriptor: int, repository: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ExportError(
            f"repository {repository}: another process is publishing into it; wait for it and run again"
        ) from error


class Changes:
    """Renames inside a with-block: kept when it ends well, undone in reverse order when it raises."""

    def __init__(self, staging: Path) -> None:
        self._staging = staging
        self._undo = ExitStack()
        self._count = 0

    def __enter__(self) -> Changes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._undo.pop_all()
        else:
            self._undo.close()

    def on_undo(self, action: Callable[[], object]) -> None:
        """Also does `action` when the block raises, after what comes later has been undone."""
        self._undo.callback(action)

    def place(self, staged: Path, target: Path) -> None:
        """Moves a file or folder made ready in the staging folder to `target`, which does not exist."""
        rename(staged, target)
        self.on_undo(lambda: rename(target, self._aside()))

    def take(self, target: Path) -> None:
        """Moves `target` out of the repository; it is deleted with the staging folder."""
        aside = self._aside()
        rename(target, aside)
        self.on_undo(lambda: rename(aside, target))

    def write(self, target: Path, text: str) -> None:
        """Puts a file with this text in place of `target`, in one step."""
        before = target.read_text(encoding="utf-8") if target.exists() else None
        self._put(target, text)
        # Written anew, because Triton takes a file with an older time for unchanged.
        self.on_undo(lambda: target.unlink() if before is None else self._put(target, before))

    def make_folder(self, target: Path) -> None:
        """Makes the empty folder `target`."""
        target.mkdir()
        self.on_undo(target.rmdir)

    def _put(self, target: Path, text: str) -> None:
        waiting = self._aside()
        waiting.write_text(text, encoding="utf-8")
        rename(waiting, target)

    def _aside(self) -> Path:
        self._count += 1
        # A leading dot, which no model's name has.
        return self._staging / f".aside-{self._count}"


def rename(source: Path, target: Path) -> None:
    """The one way anything in a repository changes; replaces a file, never a folder with content."""
    source.replace(target)
