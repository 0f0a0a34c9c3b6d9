"""Which images a command line means, the names their results get, and which of them are done already.

Images are files, folders (their images, not those of subfolders), globs and "-", an image on stdin; the same file
twice is one. The journal of a folder of results has a line of JSON for each image, written once all its files are
there, so that a run that was stopped, even in the middle of a line, goes on from there.
"""

import glob
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from slime_client.errors import INVALID_ARGUMENT, SegmenterError
from slime_client.formats import FORMATS

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif", ".heic", ".heif")
JOURNAL = ".slime-segment.jsonl"
Line = Mapping[str, Any]
_STDIN = Path("-")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One image to segment.

    Attributes:
        image: its path, existing or not.
        stem: the name its results get, without suffix; unlike any other job's.
        data: the image itself, where it has no path.
    """

    image: Path
    stem: str
    data: bytes = b""


def plan(arguments: Iterable[str], out: Path, results: Callable[[Path, str], list[Path]], stdin: BinaryIO) -> list[Job]:
    """Return the jobs for a command line's images, in its order. Of two images of one stem, the later gets a number.

    `arguments` are files, folders, globs and "-", which is read from `stdin`. `results` returns all files that an image
    of a stem becomes in the folder `out`.

    Raises:
        SegmenterError: INVALID_ARGUMENT when a result would replace an image that was given.
    """
    arguments = list(arguments)
    images = list({image.resolve(): image for image in _expand(arguments)}.values())
    data = {_STDIN: stdin.read()} if _STDIN in images else {}
    if data and not data[_STDIN]:
        raise SegmenterError("-: stdin is empty; send an image into it", INVALID_ARGUMENT)
    stems = distinct_stems([Path("stdin") if image == _STDIN else image for image in images])
    jobs = [Job(image=image, stem=stem, data=data.get(image, b"")) for image, stem in zip(images, stems, strict=True)]
    if out.resolve() in {Path(argument).resolve() for argument in arguments if Path(argument).is_dir()}:
        raise SegmenterError(
            f"--out {out}: is a folder of input images, expected another; masks would be taken for images next time",
            INVALID_ARGUMENT,
        )
    inputs = {job.image.resolve() for job in jobs}
    for result in (result for job in jobs for result in results(out, job.stem)):
        if result.resolve() in inputs:
            raise SegmenterError(
                f"--out {out}: {result.name} would replace an input image; give another folder", INVALID_ARGUMENT
            )
    return jobs


def listed(path: str, stdin: TextIO) -> list[str]:
    """Return the images that a file names, one a line; "-" is stdin.

    Raises:
        SegmenterError: INVALID_ARGUMENT when it cannot be read.
    """
    try:
        text = stdin.read() if path == str(_STDIN) else Path(path).read_text()
    except (OSError, ValueError) as error:
        raise SegmenterError(f"--list {path}: cannot be read ({error}); check the path", INVALID_ARGUMENT) from error
    return [line for line in text.splitlines() if line.strip()]


def _expand(arguments: Iterable[str]) -> Iterator[Path]:
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            yield from images_of(path)
        elif path.exists() or not glob.has_magic(argument):
            # A missing file stays: it is one failure among the others.
            yield path
        else:
            yield from sorted(found for found in map(Path, glob.glob(argument, recursive=True)) if found.is_file())


def images_of(folder: Path) -> list[Path]:
    """Return the images of a folder, without overlays of others of them; tell on stderr what else is left out."""
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    images = [path for path in files if path.suffix.lower() in SUFFIXES and not path.is_dir()]
    overlays = {f"{path.stem}-overlay" for path in images}
    left_out: Counter[str] = Counter()
    for path in files:
        if path.is_dir():
            left_out["folders"] += 1
        elif path.suffix.lower() not in SUFFIXES:
            left_out[path.suffix.lower() or "without a suffix"] += 1
        elif path.stem in overlays:
            left_out["overlays of other images"] += 1
    if left_out:
        counts = ", ".join(f"{count} {kind}" for kind, count in left_out.items())
        print(f"note: {folder}: {counts} left out, no images", file=sys.stderr)
    return [path for path in images if path.stem not in overlays]


def distinct_stems(images: list[Path]) -> list[str]:
    # Folded case, because some file systems hold A.png and a.png for one file.
    reserved = {image.stem.casefold() for image in images}
    given: set[str] = set()
    stems = []
    for image in images:
        stem, number = image.stem, 1
        while stem.casefold() in given or (number > 1 and stem.casefold() in reserved):
            number += 1
            stem = f"{image.stem}-{number}"
        given.add(stem.casefold())
        stems.append(stem)
    return stems


class Journal:
    """The lines of a folder of results by stem, the newest of each; `formats` are the results wanted of each image.

    Raises:
        SegmenterError: INVALID_ARGUMENT when the folder's journal cannot be read or written.
    """

    def __init__(self, folder: Path, formats: list[str]) -> None:
        self._folder, self._formats = folder, formats
        path = folder / JOURNAL
        try:
            content = path.read_bytes() if path.exists() else b""
            self._file = path.open("ab")
        except OSError as error:
            raise SegmenterError(f"{path}: {error.strerror}; give another --out", INVALID_ARGUMENT) from error
        self._lines: dict[str, Line] = {}
        for text in content.splitlines():
            try:
                line = json.loads(text)
                self._lines[line["stem"]] = line
            except (ValueError, TypeError, KeyError):
                # The last line of a run that was killed.
                continue
        if content and not content.endswith(b"\n"):
            self._file.write(b"\n")

    def done(self, job: Job, segmenter: str, parts: tuple[str, ...]) -> Line | None:
        """Return the line of an image whose results are all there and whole, or None.

        It has to tell of the same file, segmenter and parts.
        """
        line = self._lines.get(job.stem)
        if line is None or not job.image.is_file():
            return None
        same = {"segmenter": segmenter, "parts": list(parts), **identity(job.image)}
        if any(line.get(key) != value for key, value in same.items()):
            return None
        wanted = (FORMATS[name] for name in self._formats)
        return line if all(each.is_whole(each.path(self._folder, job.stem)) for each in wanted) else None

    def add(self, line: Line) -> None:
        """Write the line of an image that is done."""
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def identity(image: Path) -> dict[str, Any]:
    """Return what tells an image's file from another, or from what it was before."""
    state = image.stat()
    return {"image": os.fspath(image.resolve()), "bytes": state.st_size, "modified_ns": state.st_mtime_ns}
