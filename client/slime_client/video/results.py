"""A folder of a clip's results: a file or more for each frame, an overlay, and frames.jsonl, from which a run goes on.

frames.jsonl has a line that describes the run, one for each frame in order, written once its files are there, and one
at the end. A run that was stopped, however it was, goes on with the first frame whose line is missing; where frames
follow from those before (smoothing, reused answers, the overlay), it goes on at the last multiple of PIECE frames,
where all that matters of the frames before was saved.
"""

import io
import json
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from PIL import Image

from slime_client.errors import INVALID_ARGUMENT, SegmenterError
from slime_client.formats import FORMATS, coco_pieces
from slime_client.images import remove_unfinished, write_file
from slime_client.jobs import Line
from slime_client.video import overlay
from slime_client.video.frames import Frame
from slime_client.video.overlay import Overlay

JOURNAL, COCO_FILE = "frames.jsonl", "coco.json"
OVERLAY_MP4 = "overlay-mp4"
_HISTORY = ".slime-video.npz"
# Files are compressed in so many threads, while the next frames are waited for.
_WRITERS, _WRITING = 2, 4
History = Mapping[str, npt.NDArray[Any]]


class Results:
    """The results of one run in the folder `out`, which exists.

    Args:
        out: the folder.
        formats: names of `slime_client.formats.FORMATS`, and "overlay-mp4".
        run: what tells this run from another, as JSON has it: clip, segmenter, options.
        follows: whether a frame follows from those before.
        overwrite: remove what another run, or this one, has left.

    Raises:
        SegmenterError: INVALID_ARGUMENT where the folder has the results of another run.
    """

    def __init__(
        self, out: Path, formats: list[str], run: Mapping[str, Any], *, follows: bool, overwrite: bool = False
    ) -> None:
        self._out, self._each = out, [name for name in formats if name != OVERLAY_MP4]
        self._drawn = OVERLAY_MP4 in formats
        self._follows = follows or self._drawn
        self._journal = out / JOURNAL
        self.history: History = {}
        self.complete, self.damage = False, ""
        self.done = self._kept = 0
        self._size: tuple[int, int] | None = None
        for folder in {out, *(FORMATS[name].path(out, "").parent for name in self._each)}:
            remove_unfinished(folder)
        found = self._lines(0)
        before = next(found, None)
        if overwrite and before is not None:
            self._remove(before)
        elif before is not None and before != run:
            changed = sorted(key for key in {*before, *run} if before.get(key) != run.get(key))
            message = f"--out {out}: has the frames of another run, which differs in {', '.join(changed)}"
            raise SegmenterError(f"{message}; give another folder, or --overwrite", INVALID_ARGUMENT)
        elif before is not None:
            self._find_done(found)
        if not self._journal.exists():
            self._journal.write_bytes(_line(run))
        if not self.complete:
            self._cut(self.done)
        self._overlay = Overlay(out, self._kept) if self._drawn and not self.complete else None
        self._file = self._journal.open("ab")
        self._pool = ThreadPoolExecutor(_WRITERS, thread_name_prefix="slime-results")
        self._writing: deque[tuple[Future[Image.Image | None], Line]] = deque()

    def add(self, frame: Frame) -> Line:
        """Write a frame's files, in threads; return its line of the journal, which is written in its turn."""
        height, width = frame.mask.array.shape
        self._size = self._size or (width, height)
        line = {
            "frame": frame.index,
            "time": round(frame.time, 6),
            "name": frame.name,
            "width": width,
            "height": height,
            "pixels": np.bincount(frame.mask.array.ravel(), minlength=len(frame.mask.parts)).tolist(),
            "reused": frame.reused,
        }
        self._writing.append((self._pool.submit(self._write, frame), line))
        while len(self._writing) > _WRITING:
            self._settle()
        return line

    def save(self, history: History) -> None:
        """Save, at a multiple of PIECE frames, what the frames so far leave behind for those that follow."""
        if self._follows:
            while self._writing:
                self._settle()
            kept = self._overlay.end_piece() if self._overlay else 0
            buffer = io.BytesIO()
            np.savez(buffer, frames=self.done, overlay=kept, **{f"of_{name}": each for name, each in history.items()})
            write_file(self._out / _HISTORY, buffer.getvalue())

    def close(self, complete: bool, damage: str = "") -> None:
        """Finish what was given; `complete`: the clip has no further frame, `damage` what was wrong with it."""
        try:
            while self._writing:
                self._settle()
        finally:
            self._pool.shutdown()
            self._file.close()
        if self._overlay:
            self._overlay.finished((line["time"] for line in self._frames()), complete)
        if "coco" in self._each and self.done:
            pieces = coco_pieces(lambda: (path.read_bytes() for path in self._files("coco")))
            write_file(self._out / COCO_FILE, pieces)
        if complete and not self.complete:
            with self._journal.open("ab") as file:
                file.write(_line({"end": self.done, "damage": damage}))
            (self._out / _HISTORY).unlink(missing_ok=True)

    def _write(self, frame: Frame) -> Image.Image | None:
        for name in self._each:
            FORMATS[name].write(FORMATS[name].path(self._out, frame.name), frame.mask, f"{frame.name}.png")
        return frame.mask.overlay(frame.image) if self._overlay else None

    def _settle(self) -> None:
        """Wait for the oldest frame's files, and note in the journal that they are there."""
        future, line = self._writing.popleft()
        picture = future.result()
        if self._overlay and picture and self._size:
            self._overlay.add(picture, self._size)
        self._file.write(_line(line))
        self._file.flush()
        self.done += 1

    def _find_done(self, found: Iterator[Line]) -> None:
        """Find out how many frames are done: none where a file is missing, as nobody knows which others are."""
        there = 0
        for line in found:
            if "end" in line:
                self.complete, self.damage = not self._drawn or (self._out / overlay.FILE).exists(), line["damage"]
                break
            self._size = self._size or (line["width"], line["height"])
            if not all(FORMATS[each].is_whole(FORMATS[each].path(self._out, line["name"])) for each in self._each):
                return
            there += 1
        if self.complete or not self._follows:
            self.done = there
            return
        try:
            with np.load(self._out / _HISTORY) as saved:
                frames, self._kept = int(saved["frames"]), int(saved["overlay"])
                self.history = {name.removeprefix("of_"): saved[name] for name in saved.files if name.startswith("of_")}
        except (OSError, ValueError, EOFError, KeyError, BadZipFile):
            return
        if frames <= there:
            self.done = frames
        else:
            self._kept, self.history = 0, {}

    def _cut(self, frames: int) -> None:
        """Cut the journal after its first `frames` frames."""
        with self._journal.open("rb+") as file:
            for _ in range(frames + 1):
                file.readline()
            file.truncate(file.tell())

    def _remove(self, run: Line) -> None:
        """Remove the results of a run before."""
        names = [FORMATS[name] for name in run.get("formats", []) if name in FORMATS]
        for line in self._lines(1):
            for each in names if "name" in line else []:
                each.path(self._out, str(line["name"])).unlink(missing_ok=True)
        overlay.removed(self._out)
        for name in (COCO_FILE, _HISTORY, JOURNAL):
            (self._out / name).unlink(missing_ok=True)

    def _frames(self) -> Iterator[Line]:
        return (line for line in self._lines(1) if "frame" in line)

    def _files(self, format_: str) -> Iterator[Path]:
        return (FORMATS[format_].path(self._out, line["name"]) for line in self._frames())

    def _lines(self, start: int) -> Iterator[Line]:
        """Yield the lines of the journal from number `start` on, up to one that is not whole."""
        try:
            with self._journal.open("rb") as file:
                for number, text in enumerate(file):
                    if not text.endswith(b"\n"):
                        return
                    if number >= start:
                        yield json.loads(text)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            message = f"{self._journal}: cannot be read ({error}); give another --out"
            raise SegmenterError(message, INVALID_ARGUMENT) from error


def identity_of(source: str) -> dict[str, Any]:
    """Return what tells a clip from another, or from what it was before: sizes and times of its files."""
    path = Path(source)
    if not path.exists() or not (path.is_file() or path.is_dir()):
        return {"clip": source, "opened": time.time_ns()}
    files = sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]
    states = [each.stat() for each in files]
    sizes, newest = sum(state.st_size for state in states), max((state.st_mtime_ns for state in states), default=0)
    return {"clip": os.fspath(path.resolve()), "files": len(files), "bytes": sizes, "modified_ns": newest}


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode() + b"\n"
