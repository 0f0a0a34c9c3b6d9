"""Segmenting a plan of images into a folder: several at once, what is done before left out, each file whole.

Knows nothing of command lines.
"""

import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slime_client import coco
from slime_client.errors import CANCELLED, DEADLINE_EXCEEDED, UNAVAILABLE, SegmenterError
from slime_client.files import write_file
from slime_client.formats import FORMATS
from slime_client.inputs import Job
from slime_client.journal import Journal, Line, identity
from slime_client.mask import Mask
from slime_client.progress import Progress
from slime_client.segmenter import Segmenter

COCO_FILE = "coco.json"


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


def run(segmenter: Segmenter, batch: Batch) -> tuple[int, bool]:
    """Segment what is not done yet.

    Returns:
        How many images failed, and whether the server was gone before the end.
    """
    progress = Progress(len(batch.jobs), sys.stderr)
    journal = Journal(batch.out, batch.formats)
    try:
        todo = list(_not_done(segmenter, batch, journal, progress))
        gone = _segment_all(segmenter, batch, todo, journal, progress)
    finally:
        journal.close()
        if "coco" in batch.formats:
            _merge(batch)
    progress.end(batch.out, "the server is gone: stopped" if gone else "")
    return progress.failures, gone


def _not_done(segmenter: Segmenter, batch: Batch, journal: Journal, progress: Progress) -> Iterator[Job]:
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


def _segment_all(segmenter: Segmenter, batch: Batch, todo: list[Job], journal: Journal, progress: Progress) -> bool:
    with ThreadPoolExecutor(batch.concurrency) as pool:
        futures: dict[Future[Line], Job] = {pool.submit(_segment, segmenter, job, batch): job for job in todo}
        try:
            for future in as_completed(futures):
                if not _finished(future, futures[future], batch, journal, progress):
                    continue
                if not segmenter.live():
                    return True
        finally:
            for future in futures:
                future.cancel()
            if not all(future.done() for future in futures):
                segmenter.close()
    return False


def _finished(future: Future[Line], job: Job, batch: Batch, journal: Journal, progress: Progress) -> bool:
    """Tell what became of an image; returns whether the server may be gone."""
    try:
        line = future.result()
    except SegmenterError as error:
        if error.code != CANCELLED:
            progress.failed(job, error)
            _tell(batch, {"image": str(job.image), "error": str(error), "code": error.code})
        return error.code in (UNAVAILABLE, DEADLINE_EXCEEDED)
    journal.add(line)
    progress.done(job)
    _tell(batch, line)
    return False


def _segment(segmenter: Segmenter, job: Job, batch: Batch) -> Line:
    begun = time.monotonic()
    # Before the image is read: when it changes meanwhile, it is done again next time.
    told = identity(job.image) if not job.data and job.image.is_file() else {"image": str(job.image)}
    mask = segmenter.segment(job.data or job.image)
    asked = time.monotonic() - begun
    results = {name: FORMATS[name].path(batch.out, job.stem) for name in batch.formats}
    for name, path in results.items():
        FORMATS[name].write(path, mask, job.image.name)
    return {
        **told,
        "stem": job.stem,
        "segmenter": segmenter.name,
        "seconds": round(asked, 4),
        **_summary(mask),
        "results": {name: str(path.relative_to(batch.out)) for name, path in results.items()},
    }


def _summary(mask: Mask) -> dict[str, Any]:
    height, width = mask.array.shape
    counts = np.bincount(mask.array.ravel(), minlength=len(mask.parts))
    return {"width": width, "height": height, "parts": list(mask.parts), "pixels": counts.tolist()}


def _tell(batch: Batch, line: Line) -> None:
    if batch.as_json:
        print(json.dumps(line, ensure_ascii=False), flush=True)


def _merge(batch: Batch) -> None:
    paths = (FORMATS["coco"].path(batch.out, job.stem) for job in batch.jobs)
    files = [path.read_bytes() for path in paths if path.is_file()]
    if files:
        write_file(batch.out / COCO_FILE, coco.merged(files))
