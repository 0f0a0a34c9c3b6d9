"""slime-segment: masks and overlays for many images.

    slime-segment --url localhost:8001 --segmenter car photos/ "more/*.jpg" --out masks

Exit codes: 0 every image has its mask; 1 some failed; 2 the command line is wrong or the server cannot be reached.
"""

import argparse
import io
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from slime_client.core import DEFAULT_TIMEOUT_S
from slime_client.errors import DEADLINE_EXCEEDED, UNAVAILABLE, SegmenterError
from slime_client.files import write_file
from slime_client.inputs import Job, plan
from slime_client.mask import Mask
from slime_client.segmenter import Segmenter

FINE, SOME_FAILED, UNUSABLE, INTERRUPTED = 0, 1, 2, 130
_JPEG_QUALITY = 90


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _parser().parse_args(argv)
    try:
        return _run(options)
    except SegmenterError as error:
        print(f"error: {error}", file=sys.stderr)
        return UNUSABLE
    except KeyboardInterrupt:
        print("\ninterrupted; masks written so far are whole", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="slime-segment", description="Segment images with a served segmenter.")
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="files, folders or quoted globs")
    parser.add_argument("--url", default="localhost:8001", help="the server's gRPC host:port (default: %(default)s)")
    parser.add_argument("--segmenter", required=True, metavar="NAME", help="the segmenter's name on the server")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for masks and overlays")
    parser.add_argument("--no-overlay", dest="overlay", action="store_false", help="write masks only")
    parser.add_argument(
        "--timeout",
        type=float,
        default=DEFAULT_TIMEOUT_S,
        metavar="S",
        help="seconds an image may take (default: %(default)g)",
    )
    return parser


def _run(options: argparse.Namespace) -> int:
    jobs = plan(options.images, options.out)
    if not jobs:
        raise SegmenterError(f"{', '.join(options.images)}: no images found; give image files, folders or globs")
    with Segmenter(options.url, options.segmenter, timeout=options.timeout) as segmenter:
        _make_folder(options.out)
        return _segment_all(segmenter, jobs, options.out, overlay=options.overlay)


def _segment_all(segmenter: Segmenter, jobs: list[Job], out: Path, *, overlay: bool) -> int:
    progress = _Progress(len(jobs), sys.stderr)
    for job in jobs:
        try:
            _segment_one(segmenter, job, out, overlay=overlay)
        except SegmenterError as error:
            progress.failed(job, error)
            if error.code in (UNAVAILABLE, DEADLINE_EXCEEDED) and not segmenter.live():
                progress.end(out, "the server is gone: stopped")
                return UNUSABLE
        else:
            progress.done(job)
    progress.end(out)
    return SOME_FAILED if progress.failures else FINE


def _segment_one(segmenter: Segmenter, job: Job, out: Path, *, overlay: bool) -> None:
    mask = segmenter.segment(job.image)
    mask.save(job.mask(out))
    if overlay:
        write_file(job.overlay(out), _jpeg(mask))


def _jpeg(mask: Mask) -> bytes:
    buffer = io.BytesIO()
    mask.overlay().save(buffer, format="JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SegmenterError(f"--out {folder}: cannot be made ({error.strerror}); give another folder") from error


class _Progress:
    """Lines on a terminal or in a log: a running line only where it can be rewritten."""

    def __init__(self, total: int, stream: TextIO) -> None:
        self.failures = 0
        self._total, self._stream = total, stream
        self._tried = 0
        self._start = time.monotonic()
        self._live = stream.isatty()

    def done(self, job: Job) -> None:
        self._tried += 1
        if job.stem != job.image.stem:
            self._line(f"note: {job.image} -> {job.stem}.png, another image has the name {job.image.stem}.png")
        self._rewrite()

    def failed(self, job: Job, error: SegmenterError) -> None:
        self._tried += 1
        self.failures += 1
        message = str(error)
        self._line(f"error: {message if message.startswith(str(job.image)) else f'{job.image}: {message}'}")
        self._rewrite()

    def end(self, out: Path, why: str = "") -> None:
        seconds = time.monotonic() - self._start
        failed = f", {self.failures} failed" if self.failures else ""
        unsent = f", {self._total - self._tried} not sent ({why})" if why else ""
        done = self._tried - self.failures
        self._line(f"{done} of {self._total} images in {seconds:.1f} s{failed}{unsent} -> {out}")

    def _rewrite(self) -> None:
        if self._live:
            rate = self._tried / max(time.monotonic() - self._start, 1e-9)
            left = (self._total - self._tried) / rate
            print(
                f"\r\033[K{self._tried}/{self._total}  {rate:.1f} images/s  {left:.0f} s left",
                end="",
                file=self._stream,
                flush=True,
            )

    def _line(self, text: str) -> None:
        print(("\r\033[K" if self._live else "") + text, file=self._stream, flush=True)
