"""The studio's one exception: a line for the person, and the HTTP status that it is answered with."""

from __future__ import annotations

import errno


class StudioError(Exception):
    """What went wrong, in one line: subject, what was found, what was expected, what to do next."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(" ".join(message.split()))
        self.status = status


def disk_error(error: OSError, subject: str) -> StudioError:
    """Return what is told where a disk refuses to keep `subject`; 507 where it is full."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StudioError(f"{subject}: not saved, the disk is full; free some of it, the page tries again", 507)
    return StudioError(f"{subject}: not saved ({error.strerror or error}); the page tries again", 500)
