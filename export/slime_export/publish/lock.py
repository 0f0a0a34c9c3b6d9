"""Lets one process at a time change a repository, and gives it a folder to prepare the change in.

The lock is the kernel's (flock), on the repository's folder itself: nothing is left behind where its holder is killed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from slime_export.errors import BusyError, ExportError

# A publication holds it while a running server loads and tries the new networks.
WAIT_S = 600.0
_POLL_S = 0.05

Say = Callable[[str], None]


@contextmanager
def locked(repository: Path, wait_s: float = WAIT_S, say: Say = print) -> Iterator[None]:
    """Keep others from changing `repository`, which is made if missing, inside the block; wait for whoever does.

    A repository that was made here and stayed empty is gone afterwards. Raises BusyError after `wait_s` seconds,
    ExportError where it cannot be a folder.
    """
    made = not repository.exists()
    descriptor = _taken(repository, wait_s, say)
    try:
        yield
    finally:
        if made and not any(repository.iterdir()):
            repository.rmdir()
        os.close(descriptor)


@contextmanager
def staging(repository: Path, wait_s: float = WAIT_S, say: Say = print) -> Iterator[Path]:
    """Give an empty folder beside `repository`, on its filesystem, for this process alone; it is gone afterwards.

    Those of processes that were killed are removed first. Raises as `locked` does.
    """
    root = repository.resolve()
    prefix = f".{root.name}.staging-"
    with locked(repository, wait_s, say):
        for left in root.parent.glob(f"{prefix}*"):
            _remove_abandoned(left)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=root.parent))
        folder.chmod(0o755)  # mkdtemp's is for its owner alone, and a model made ready in it would stay so
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(held, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def _taken(repository: Path, wait_s: float, say: Say) -> int:
    """Return the descriptor that holds the lock."""
    deadline, told = time.monotonic() + wait_s, False
    while True:
        descriptor = _opened(repository)
        if descriptor is not None:
            if _flocked(descriptor) and _is(repository, descriptor):
                return descriptor
            os.close(descriptor)
        if time.monotonic() >= deadline:
            raise BusyError(
                f"repository {repository}: another process is still changing it after {wait_s:g} s; run again later, "
                "or wait longer with --wait"
            )
        if not told:
            say(f"repository {repository}: another process is changing it; waiting for up to {wait_s:g} s")
            told = True
        time.sleep(_POLL_S)


def _opened(repository: Path) -> int | None:
    """Return the folder's descriptor; None where whoever made it removed it, empty, in that moment."""
    try:
        repository.mkdir(parents=True, exist_ok=True)
        return os.open(repository, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        if not repository.exists() and isinstance(error, FileNotFoundError | FileExistsError):
            return None
        raise ExportError(f"repository {repository}: cannot be a folder ({error.strerror}); give another") from error


def _flocked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is(repository: Path, descriptor: int) -> bool:
    """Return whether the folder is still there under its name: who made it may have removed it while we waited."""
    try:
        return os.path.samestat(repository.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _remove_abandoned(folder: Path) -> None:
    """Remove a staging folder whose process is gone, which it is where nobody holds the folder's own lock."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:  # Its process was just through with it.
        return
    try:
        if _flocked(descriptor):
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)
