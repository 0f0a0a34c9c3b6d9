"""Files that appear whole or not at all: written beside their place under another name, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield the name to write under, which becomes `path` after the with-block, and is removed if the block fails.

    Makes the folders on the way. Raises OSError where nothing can be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    waiting = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield waiting
        os.replace(waiting, path)
    finally:
        waiting.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with whole(path) as waiting:
        waiting.write_text(text, encoding="utf-8")
