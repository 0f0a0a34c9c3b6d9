"""What a folder of results already has: a line of JSON for each image, written once all its files are there.

A run that was stopped, even in the middle of a line, goes on from here: an image is done when its line tells of the
same file, segmenter and parts, and every result that is wanted is there and whole.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slime_client.errors import INVALID_ARGUMENT, SegmenterError
from slime_client.formats import FORMATS
from slime_client.inputs import Job

NAME = ".slime-segment.jsonl"
Line = Mapping[str, Any]


class Journal:
    """The lines of one folder, by the results' stem; the newest of each counts.

    Args:
        folder: where the results are.
        formats: the results that are wanted of each image.

    Raises:
        SegmenterError: INVALID_ARGUMENT when the folder's journal cannot be read or written.
    """

    def __init__(self, folder: Path, formats: list[str]) -> None:
        self._folder, self._formats = folder, formats
        self._path = folder / NAME
        try:
            content = self._path.read_bytes() if self._path.exists() else b""
            self._file = self._path.open("ab")
        except OSError as error:
            raise SegmenterError(f"{self._path}: {error.strerror}; give another --out", INVALID_ARGUMENT) from error
        self._lines = _lines(content)
        if content and not content.endswith(b"\n"):
            self._file.write(b"\n")

    def done(self, job: Job, segmenter: str, parts: tuple[str, ...]) -> Line | None:
        """The line of an image whose results are all there, or None."""
        line = self._lines.get(job.stem)
        if line is None or not job.image.is_file():
            return None
        same = {"segmenter": segmenter, "parts": list(parts), **identity(job.image)}
        if any(line.get(key) != value for key, value in same.items()):
            return None
        wanted = (FORMATS[name] for name in self._formats)
        return line if all(each.is_whole(each.path(self._folder, job.stem)) for each in wanted) else None

    def add(self, line: Line) -> None:
        """An image is done."""
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def identity(image: Path) -> dict[str, Any]:
    """What tells an image's file from another, or from what it was before."""
    state = image.stat()
    return {"image": os.fspath(image.resolve()), "bytes": state.st_size, "modified_ns": state.st_mtime_ns}


def _lines(content: bytes) -> dict[str, Line]:
    found = {}
    for text in content.splitlines():
        try:
            line = json.loads(text)
            found[line["stem"]] = line
        except (ValueError, TypeError, KeyError):
            # The last line of a run that was killed.
            continue
    return found
