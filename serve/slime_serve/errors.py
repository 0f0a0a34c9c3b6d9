"""What can go wrong, each one line fit to show.

ServeError
├── UsageError     the caller can put it right: a path, a port (exit code 2)
└── ServerError   the server would not start, load or answer, or it died (exit code 1)
"""

from __future__ import annotations


class ServeError(Exception):
    exit_code = 1


class UsageError(ServeError):
    exit_code = 2


class ServerError(ServeError):
    """``log_tail``: the server's last lines, where its own words say more than the message."""

    def __init__(self, message: str, log_tail: str = "") -> None:
        super().__init__(message)
        self.log_tail = log_tail


class Stopped(Exception):  # noqa: N818 - it is none
    """Not an error: somebody asked to stop while the server was starting or serving."""
