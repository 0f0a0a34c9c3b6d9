"""Processes that outlive a killed studio, so that the next one finds them again by their number and command line."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

_GRACE_SECONDS = 10.0


def start(words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a process in a group of its own, whose output goes into the file `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )


def is_alive(pid: int, mark: str) -> bool:
    """Return whether process `pid` runs and has the word `mark` on its command line: numbers are used again."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return mark.encode() in words and state not in "ZX"


def end(pid: int, mark: str, first: signal.Signals = signal.SIGINT) -> None:
    """End a process and its group: it is asked first, and killed where it has not ended within some seconds."""
    for number, seconds in ((first, _GRACE_SECONDS), (signal.SIGKILL, _GRACE_SECONDS)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, number)
        deadline = time.monotonic() + seconds
        while is_alive(pid, mark):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        else:
            return
