"""Which images a command line means, and the names their results get.

Files, folders (their images, not those of subfolders), globs and "-", an image on stdin; the same file twice is one.
"""

import glob
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

from slime_client.errors import INVALID_ARGUMENT, SegmenterError

_STDIN = Path("-")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


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
    """The jobs for a command line's images, in its order.

    Two images of one stem get different names: the later one a number.

    Args:
        arguments: files, folders, globs, "-".
        out: the results' folder.
        results: all files that an image of a stem becomes in a folder.
        stdin: where "-" is read from.

    Raises:
        SegmenterError: INVALID_ARGUMENT when a result would replace an image that was given.
    """
    arguments = list(arguments)
    images = list({image.resolve(): image for image in _expand(arguments)}.values())
    data = {_STDIN: stdin.read()} if _STDIN in images else {}
    stems = _distinct_stems([Path("stdin") if image == _STDIN else image for image in images])
    jobs = [Job(image=image, stem=stem, data=data.get(image, b"")) for image, stem in zip(images, stems, strict=True)]
    if data and not data[_STDIN]:
        raise SegmenterError("-: stdin is empty; send an image into it", INVALID_ARGUMENT)
    _spare_the_inputs(arguments, jobs, out, results)
    return jobs


def listed(path: str, stdin: TextIO) -> list[str]:
    """The images that a file names, one a line; "-" is stdin.

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
            yield from sorted(found for found in path.iterdir() if found.suffix.lower() in SUFFIXES)
        elif path.exists() or not glob.has_magic(argument):
            # A missing file stays: it is one failure among the others.
            yield path
        else:
            yield from sorted(found for found in map(Path, glob.glob(argument, recursive=True)) if found.is_file())


def _distinct_stems(images: list[Path]) -> list[str]:
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


def _spare_the_inputs(
    arguments: list[str], jobs: list[Job], out: Path, results: Callable[[Path, str], list[Path]]
) -> None:
    folders = {Path(argument).resolve() for argument in arguments if Path(argument).is_dir()}
    if out.resolve() in folders:
        raise SegmenterError(
            f"--out {out}: is a folder of input images, expected another; masks would be taken for images next time",
            INVALID_ARGUMENT,
        )
    inputs = {job.image.resolve() for job in jobs}
    for job in jobs:
        for result in results(out, job.stem):
            if result.resolve() in inputs:
                raise SegmenterError(
                    f"--out {out}: {result.name} would replace an input image; give another folder", INVALID_ARGUMENT
                )
