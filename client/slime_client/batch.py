"""Segments a plan of images into a folder: several at once, what is done before left out, each file whole.

Knows nothing of command lines. It tells people how it goes on stderr, and scripts on stdout.
"""

import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, TypeAlias

import numpy as np

from slime_client.blocking import Segmenter
from slime_client.errors import CANCELLED, DEADLINE_EXCEEDED, UNAVAILABLE, SegmenterError
from slime_client.formats import FORMATS, merged_coco
from slime_client.images import write_file
from slime_client.jobs import Job, Journal, Line, identity
from slime_client.local import LocalSegmenter
from slime_client.progress import Lines

COCO_FILE = "coco.json"
_Segmenter: TypeAlias = Segmenter | LocalSegmenter


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What is wanted.

    Attributes:
        jobs: the images.
        out: an existing folder for the results.
        formats: names of `slime_client.formats.FORMATS`.
        concurrency: images in flight.
        overwrite: do again what is done.
        as_json: a line of JSON on stdout for each image.
    """

    jobs: list[Job]
    out: Path
    formats: list[str]
    concurrency: int
    overwrite: bool = False
    as_json: bool = False


def run(segmenter: _Segmenter, batch: Batch) -> tuple[int, bool]:
    """Segment what is not done yet; return how many images failed, and whether the server was gone before the end."""
    progress = _Progress(len(batch.jobs), sys.stderr)
    if seconds := segmenter.description.image_seconds:
        progress.expect(seconds, batch.concurrency, segmenter.timeout)
    journal = Journal(batch.out, batch.formats)
    try:
        todo = list(_not_done(segmenter, batch, journal, progress))
        gone = _segment_all(segmenter, batch, todo, journal, progress)
    finally:
        journal.close()
        if "coco" in batch.formats:
            paths = (FORMATS["coco"].path(batch.out, job.stem) for job in batch.jobs)
            if files := [path.read_bytes() for path in paths if path.is_file()]:
                write_file(batch.out / COCO_FILE, merged_coco(files))
    progress.end(batch.out, "the server is gone: stopped" if gone else "")
    return progress.failures, gone


def _not_done(segmenter: _Segmenter, batch: Batch, journal: Journal, progress: "_Progress") -> Iterator[Job]:
    found = {
        job.stem: line
        for job in batch.jobs
        if not batch.overwrite and (line := journal.done(job, segmenter.name, segmenter.parts))
    }
    progress.skipped(len(found))
    for job in batch.jobs:
        if job.stem in found:
            _tell(batch, {**found[job.stem], "skipped": True})
        else:
            yield job


def _segment_all(segmenter: _Segmenter, batch: Batch, todo: list[Job], journal: Journal, progress: "_Progress") -> bool:
    """Segment `todo`, several images at once; return whether the server was gone before the end."""
    with ThreadPoolExecutor(batch.concurrency) as pool:
        futures: dict[Future[Line], Job] = {pool.submit(_segment, segmenter, job, batch): job for job in todo}
        try:
            for future in as_completed(futures):
                may_be_gone = _finished(future, futures[future], batch, journal, progress)
                if may_be_gone and not segmenter.live():
                    return True
        finally:
            for future in futures:
                future.cancel()
            if not all(future.done() for future in futures):
                segmenter.close()
    return False


def _finished(future: Future[Line], job: Job, batch: Batch, journal: Journal, progress: "_Progress") -> bool:
    """Tell what became of an image; return whether the server may be gone."""
    try:
        line = future.result()
    except SegmenterError as error:
        if error.code != CANCELLED:
            progress.failed(job, error)
            _tell(batch, {"image": str(job.image), "error": str(error), "code": error.code})
        return error.code in (UNAVAILABLE, DEADLINE_EXCEEDED)
    journal.add(line)
    progress.done(job, str(line.get("note", "")))
    _tell(batch, line)
    return False


def _segment(segmenter: _Segmenter, job: Job, batch: Batch) -> Line:
    """Segment one image and write its results; return its line of the journal."""
    begun = time.monotonic()
    # Before the image is read: when it changes meanwhile, it is done again next time.
    told = identity(job.image) if not job.data and job.image.is_file() else {"image": str(job.image)}
    mask = segmenter.segment(job.data or job.image)
    asked = time.monotonic() - begun
    results = {name: FORMATS[name].path(batch.out, job.stem) for name in batch.formats}
    for name, path in results.items():
        FORMATS[name].write(path, mask, job.image.name)
    height, width = mask.array.shape
    return {
        **told,
        "stem": job.stem,
        "segmenter": segmenter.name,
        "seconds": round(asked, 4),
        "width": width,
        "height": height,
        "parts": list(mask.parts),
        "pixels": np.bincount(mask.array.ravel(), minlength=len(mask.parts)).tolist(),
        "results": {name: str(path.relative_to(batch.out)) for name, path in results.items()},
        **({"note": mask.source.note} if mask.source and mask.source.note else {}),
    }


def _tell(batch: Batch, line: Line) -> None:
    if batch.as_json:
        print(json.dumps(line, ensure_ascii=False), flush=True)


class _Progress:
    """Counts images and tells people, with the rate."""

    def __init__(self, total: int, stream: TextIO) -> None:
        self.failures = 0
        self._total, self._lines = total, Lines(stream)
        self._tried, self._skipped = 0, 0
        self._start = time.monotonic()

    def expect(self, seconds: float, concurrency: int, timeout: float) -> None:
        """Tell what the server says that an image takes, and what follows from it."""
        shown = f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.2g}"
        self._lines.line(f"about {shown} s an image here; {concurrency} in flight, and up to {timeout:.0f} s for each")

    def skipped(self, number: int) -> None:
        """Tell that so many were done before."""
        self._skipped = number
        if number:
            self._lines.line(f"{number} of {self._total} images were done before; --overwrite does them again")

    def done(self, job: Job, note: str) -> None:
        """Count an image that has its results, and tell what there is to note of it."""
        self._tried += 1
        if note:
            self._lines.line(f"note: {job.image}: {note}")
        if job.stem != job.image.stem and not job.data:
            self._lines.line(f"note: {job.image} -> {job.stem}.*, another image has the name {job.image.stem}")
        self._rewrite()

    def failed(self, job: Job, error: SegmenterError) -> None:
        """Count an image that has none, and tell why."""
        self._tried += 1
        self.failures += 1
        message = str(error)
        self._lines.line(f"error: {message if message.startswith(str(job.image)) else f'{job.image}: {message}'}")
        self._rewrite()

    def end(self, out: Path, why: str) -> None:
        """Tell the summary; `why` there are images that were not sent, where there are."""
        seconds = time.monotonic() - self._start
        failed = f", {self.failures} failed" if self.failures else ""
        unsent = f", {self._total - self._skipped - self._tried} not sent ({why})" if why else ""
        done = self._tried - self.failures + self._skipped
        pace = f" ({self._pace(seconds)})" if self._pace(seconds) else ""
        self._lines.line(f"{done} of {self._total} images in {seconds:.1f} s{pace}{failed}{unsent} -> {out}")

    def _pace(self, seconds: float) -> str:
        """Return how fast images get their masks; "" for fewer than two, and where most are refused."""
        masks = self._tried - self.failures
        if masks < 2 or masks < self.failures or seconds <= 0:
            return ""
        rate = masks / seconds
        return f"{rate:.1f} images/s" if rate >= 1 else f"{1 / rate:.1f} s an image"

    def _rewrite(self) -> None:
        seconds, at = time.monotonic() - self._start, self._tried + self._skipped
        left = f"{(self._total - at) * seconds / self._tried:.0f} s left"
        text = "  ".join(filter(None, (f"{at}/{self._total}", self._pace(seconds), left)))
        self._lines.rewrite(text)
