"""Telling people how a run goes: lines that stay, and on a terminal one that is rewritten, with the rate."""

import time
from pathlib import Path
from typing import TextIO

from slime_client.errors import SegmenterError
from slime_client.inputs import Job


class Progress:
    """Counts images, and writes to a terminal or a log: a running line only where it can be rewritten."""

    def __init__(self, total: int, stream: TextIO) -> None:
        self.failures = 0
        self._total, self._stream = total, stream
        self._tried, self._skipped = 0, 0
        self._start = time.monotonic()
        self._live = stream.isatty()

    def skipped(self, number: int) -> None:
        """So many were done before."""
        self._skipped = number
        if number:
            self.line(f"{number} of {self._total} images were done before; --overwrite does them again")

    def done(self, job: Job) -> None:
        """One more has its results."""
        self._tried += 1
        if job.stem != job.image.stem and not job.data:
            self.line(f"note: {job.image} -> {job.stem}.*, another image has the name {job.image.stem}")
        self._rewrite()

    def failed(self, job: Job, error: SegmenterError) -> None:
        """One more has none."""
        self._tried += 1
        self.failures += 1
        message = str(error)
        self.line(f"error: {message if message.startswith(str(job.image)) else f'{job.image}: {message}'}")
        self._rewrite()

    def end(self, out: Path, why: str = "") -> None:
        """The summary."""
        seconds = time.monotonic() - self._start
        failed = f", {self.failures} failed" if self.failures else ""
        unsent = f", {self._total - self._skipped - self._tried} not sent ({why})" if why else ""
        done = self._tried - self.failures + self._skipped
        rate = f" ({self._tried / seconds:.1f} images/s)" if self._tried and seconds > 0 else ""
        self.line(f"{done} of {self._total} images in {seconds:.1f} s{rate}{failed}{unsent} -> {out}")

    def line(self, text: str) -> None:
        """A line that stays."""
        print(("\r\033[K" if self._live else "") + text, file=self._stream, flush=True)

    def _rewrite(self) -> None:
        if not self._live:
            return
        rate = self._tried / max(time.monotonic() - self._start, 1e-9)
        at = self._tried + self._skipped
        text = f"\r\033[K{at}/{self._total}  {rate:.1f} images/s  {(self._total - at) / rate:.0f} s left"
        print(text, end="", file=self._stream, flush=True)
