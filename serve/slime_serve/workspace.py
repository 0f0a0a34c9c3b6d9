"""The temporary folder of one launch, with the server's log beside it; and what launches left that were killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = "slime-launch-"


class Workspace:
    """An empty folder at ``path``, until `close`. A lock on it, held as long as the launcher lives, tells other
    launches that it is in use.
    """

    def __init__(self) -> None:
        _remove_abandoned()
        # Locked under another name first: nobody finds the folder unlocked.
        hidden = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}"))
        self._lock = os.open(hidden, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.path = hidden.rename(hidden.with_name(hidden.name[1:]))

    @property
    def log(self) -> Path:
        """The file for the server's output; it lies beside the folder, because a failure keeps it."""
        return _log_of(self.path)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _log_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.log")


def _remove_abandoned() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/"):
        with contextlib.suppress(OSError):  # Another user's, or gone already.
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
                _log_of(folder).unlink(missing_ok=True)
            finally:
                os.close(handle)
