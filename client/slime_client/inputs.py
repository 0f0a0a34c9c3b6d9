"""Which images a command line means, and the names their results get.

Files, folders (their images, not those of subfolders) and globs; the same file twice is one image.
"""

import glob
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from slime_client.errors import INVALID_ARGUMENT, SegmenterError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One image to segment.

    Attributes:
        image: its path, existing or not.
        stem: the name its results get, without suffix; unlike any other job's.
    """

    image: Path
    stem: str

    def mask(self, folder: Path) -> Path:
        """Where its mask goes."""
        return folder / f"{self.stem}.png"

    def overlay(self, folder: Path) -> Path:
        """Where its overlay goes."""
        return folder / f"{self.stem}-overlay.jpg"


def plan(arguments: Iterable[str], out: Path) -> list[Job]:
    """The jobs for a command line's images, in its order.

    Two images of one stem get different names: the later one a number.

    Raises:
        SegmenterError: INVALID_ARGUMENT when a result would replace an image that was given.
    """
    arguments = list(arguments)
    images = list({image.resolve(): image for image in _expand(arguments)}.values())
    jobs = [Job(image=image, stem=stem) for image, stem in zip(images, _distinct_stems(images), strict=True)]
    _spare_the_inputs(arguments, jobs, out)
    return jobs


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


def _spare_the_inputs(arguments: list[str], jobs: list[Job], out: Path) -> None:
    folders = {Path(argument).resolve() for argument in arguments if Path(argument).is_dir()}
    if out.resolve() in folders:
        raise SegmenterError(
            f"--out {out}: is a folder of input images, expected another; masks would be taken for images next time",
            INVALID_ARGUMENT,
        )
    inputs = {job.image.resolve() for job in jobs}
    for job in jobs:
        for result in (job.mask(out), job.overlay(out)):
            if result.resolve() in inputs:
                raise SegmenterError(
                    f"--out {out}: {result.name} would replace an input image; give another folder", INVALID_ARGUMENT
                )
