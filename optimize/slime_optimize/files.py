"""Files that appear whole or not at all: written beside their place under another name, then put there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """The name to write under; it becomes `path` when the block is over, and is removed when the block fails.

    Folders on the way are made. OSError where nothing can be written there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    waiting = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield waiting
        os.replace(waiting, path)
    finally:
        waiting.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`text` as UTF-8, whole or not at all."""
    with whole(path) as waiting:
        waiting.write_text(text, encoding="utf-8")
