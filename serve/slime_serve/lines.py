"""The launcher's lines about a running server: with time and level, as text or as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import datetime, timezone

FORMATS = ("text", "json")
_LEVELS = ("warning", "error")


def say(form: str) -> Callable[[str], None]:
    """Return what writes a line on stderr. Its level is the word it begins with, "warning: " or "error: ", else info.

    text: `2026-11-27T09:35:03Z warning: the line`; json: an object with `time`, `level` and `message`.
    """

    def written(line: str) -> None:
        time = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        word, _, rest = line.partition(": ")
        level, message = (word, rest) if word in _LEVELS else ("info", line)
        if form == "json":
            line = json.dumps({"time": time, "level": level, "message": message}, ensure_ascii=False)
        else:
            line = f"{time} {level}: {message}"
        sys.stderr.write(f"{line}\n")  # At once: several threads say something.
        sys.stderr.flush()

    return written
