"""One tritonserver process: started in a group of its own, looked at, stopped. Knows nothing of models."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_KILL_SECONDS = 5
_PR_SET_PDEATHSIG = 1


class Process:
    """Running from the start. ``log`` is appended to; ``inherited``: an open file that it keeps as long as it lives."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path, inherited: int) -> None:
        self._log = log
        with log.open("ab") as output:
            self._begins = output.tell()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=[inherited],
                # A group of its own: Ctrl-C reaches only the launcher, and no process can be forgotten.
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def code(self) -> int | None:
        """Its exit code, None while it runs."""
        return self._process.poll()

    def output(self) -> str:
        """What it wrote."""
        with self._log.open("rb") as log:
            log.seek(self._begins)
            return log.read().decode(errors="replace")

    def end(self, seconds: float) -> None:
        """Politely first, so that requests under way are answered; then the whole group, Python processes included."""
        if self._process.poll() is None and seconds > 0:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
        deadline = time.monotonic() + _KILL_SECONDS
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                os.killpg(self.pid, signal.SIGKILL)
                self._process.poll()
                time.sleep(0.02)


def _end_with_parent() -> None:
    """In the child: be told to stop should the launcher itself be killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
