"""`slime segment` of a clip: the options, the run with its progress, and how it goes on where it was stopped."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeAlias, get_args

from slime_client.blocking import Segmenter
from slime_client.errors import INVALID_ARGUMENT, SegmenterError
from slime_client.formats import FORMATS
from slime_client.local import LocalSegmenter
from slime_client.progress import Lines
from slime_client.video import overlay
from slime_client.video.flight import FRESHEST_CONCURRENCY, frames
from slime_client.video.frames import PIECE, Following, Track
from slime_client.video.reading import DEFAULT_RATE, Clip, is_clip
from slime_client.video.results import OVERLAY_MP4, Results, identity_of
from slime_client.video.smoothing import Smooth

_Segmenter: TypeAlias = Segmenter | LocalSegmenter


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for clips."""
    group = parser.add_argument_group(
        "video",
        "A clip is a video file, a camera (/dev/video0) or a URL (rtsp://…); with these options a folder or .tif too",
    )
    add, usual = group.add_argument, Following()
    add("--video", action="store_true", help="the folder's images, or the pages of the .tif, are one clip")
    meaning = "none: each frame as a single image; mean, flow: consistent masks (docs/video.md)"
    add("--smooth", choices=get_args(Smooth), help=f"{meaning} (default: {usual.smooth})")
    add("--stride", type=int, metavar="N", help="segment every Nth frame, and leave the others out")
    add("--skip-still", action="store_true", help="a frame that hardly changed gets the answer to the one before")
    add("--freshest", action="store_true", help="of a camera or URL, the newest frame; those in between are left out")
    staleness = f"with --freshest: leave out a frame that waited longer (default: {usual.max_staleness:g})"
    add("--max-staleness", type=float, metavar="S", help=staleness)
    add("--fps", type=float, metavar="F", help=f"frames a second of folders and pages (default: {DEFAULT_RATE:g})")


def is_wanted(options: argparse.Namespace) -> bool:
    """Return whether a command line is about a clip."""
    asked = (options.video, options.smooth, options.stride, options.skip_still, options.freshest)
    more = (options.max_staleness, options.fps, OVERLAY_MP4 in (options.format or []))
    return any(asked) or any(each not in (None, False) for each in more) or any(map(is_clip, options.images))


@dataclass(kw_only=True)
class Wanted:
    """What is wanted of a clip, checked before a server is asked.

    Attributes:
        source: what `reading.opened` takes.
        out: the folder for the results.
        how: how one frame follows the other.
        formats: names of `slime_client.formats.FORMATS`, and "overlay-mp4".
        rate: frames a second of folders and pages.
        concurrency: frames in flight; None for as many as usual.
        overwrite: remove what another run has left in the folder.
        as_json: a line of JSON on stdout for each frame.

    Raises:
        SegmenterError: INVALID_ARGUMENT, FAILED_PRECONDITION where a package is missing.
    """

    source: str
    out: Path
    how: Following = field(default_factory=Following)
    formats: list[str] = field(default_factory=lambda: ["palette"])
    rate: float = DEFAULT_RATE
    concurrency: int | None = None
    overwrite: bool = False
    as_json: bool = False

    def __post_init__(self) -> None:
        for name in self.formats:
            overlay.check() if name == OVERLAY_MP4 else FORMATS[name].check()
        self.clip = self.how.opened(self.source, self.rate)
        if Path(self.source).is_dir() and self.out.resolve() == Path(self.source).resolve():
            message = f"--out {self.out}: is the folder of the frames, expected another"
            raise SegmenterError(f"{message}; masks would be taken for frames next time", INVALID_ARGUMENT)

    @classmethod
    def by(cls, options: argparse.Namespace) -> "Wanted":
        """Return what a command line wants. Raises SegmenterError as the class does."""
        if len(options.images) != 1 or options.list:
            got = f"{len(options.images)} sources" if not options.list else "--list"
            raise SegmenterError(f"video: got {got}, expected one clip; run once for each", INVALID_ARGUMENT)
        given = {
            "smooth": options.smooth,
            "stride": options.stride,
            "skip_still": options.skip_still or None,
            "freshest": options.freshest or None,
            "max_staleness": options.max_staleness,
        }
        return cls(
            source=options.images[0],
            out=options.out,
            how=Following(**{name: value for name, value in given.items() if value is not None}),
            formats=list(dict.fromkeys(options.format or ["palette"])),
            rate=DEFAULT_RATE if options.fps is None else options.fps,
            concurrency=options.concurrency,
            overwrite=options.overwrite,
            as_json=options.json,
        )


def run(
    segmenter: _Segmenter, wanted: Wanted, watch: Callable[[int, int | None], object] = lambda done, of: None
) -> bool:
    """Segment the clip into the folder `wanted.out`, which exists; return whether the clip was read without damage.

    `watch` is called now and then with the frames that are done, and how many there will be, None where nobody knows.

    Raises:
        SegmenterError: what a frame's request ended with. The results so far are whole, and the same command goes on.
    """
    how, clip, lines = wanted.how, wanted.clip, Lines(sys.stderr)
    about = {
        **identity_of(wanted.source),
        "segmenter": segmenter.name,
        "version": str(segmenter.description.about.get("version", "")),
        "parts": list(segmenter.parts),
        "smooth": how.smooth,
        "stride": how.stride,
        "skip_still": how.skip_still,
        "fps": wanted.rate,
        "formats": sorted(wanted.formats),
    }
    results = Results(wanted.out, wanted.formats, about, follows=how.follows, overwrite=wanted.overwrite)
    if results.done:
        lines.line(f"{results.done} frames were done before; --overwrite does them again")
    progress = _Progress(clip, how.stride, results.done, lines, watch)
    complete = results.complete
    try:
        if not complete:
            _segment(segmenter, wanted, results, progress)
            complete = True
    finally:
        results.close(complete, clip.damage)
        progress.end(wanted.out)
    damage = clip.damage or results.damage
    if damage:
        lines.line(f"error: {clip.source}: {damage}; the frames that could be read have their masks")
    return not damage


def _segment(segmenter: _Segmenter, wanted: Wanted, results: Results, progress: "_Progress") -> None:
    how, track = wanted.how, Track(wanted.how)
    if results.history:
        track.go_on(results.history)
    usual = FRESHEST_CONCURRENCY if how.freshest else segmenter.concurrency
    made = frames(
        partial(segmenter.submit, scores=how.scores),
        wanted.clip,
        track,
        how,
        concurrency=wanted.concurrency or usual,
        start=results.done * how.stride,
    )
    parts = segmenter.parts
    with closing(made):
        for number, frame in enumerate(made, results.done + 1):
            if frame.mask.parts != parts:
                message = f"frame {frame.index}: segmenter {segmenter.name!r} was published again, with other parts"
                raise SegmenterError(f"{message}; --overwrite begins again", INVALID_ARGUMENT)
            line = results.add(frame)
            if number % PIECE == 0:
                results.save(track.history())
            progress.done(frame.time)
            if wanted.as_json:
                print(json.dumps(line, ensure_ascii=False), flush=True)


class _Progress:
    """Counts frames, and tells how fast they come and how long it will take where the clip's length is known."""

    def __init__(
        self, clip: Clip, stride: int, before: int, lines: Lines, watch: Callable[[int, int | None], object]
    ) -> None:
        self._before, self._lines, self._watch = before, lines, watch
        self._total = -(-clip.pictures // stride) if clip.pictures else None
        self._frames, self._start, self._told = 0, time.monotonic(), 0.0

    def done(self, at: float) -> None:
        """Count a frame, which is `at` so many seconds of the clip."""
        self._frames += 1
        now = time.monotonic()
        if now - self._told < 0.1:
            return
        self._told = now
        rate, there = self._frames / max(now - self._start, 1e-6), self._before + self._frames
        total = f"/{self._total}" if self._total else ""
        left = f"{max(self._total - there, 0) / rate:.0f} s left" if self._total else f"at {at:.0f} s"
        self._watch(there, self._total)
        self._lines.rewrite(f"{there}{total} frames  {rate:.1f} frames/s  {left}")

    def end(self, out: Path) -> None:
        """Tell the summary."""
        self._watch(self._before + self._frames, self._total)
        seconds = time.monotonic() - self._start
        rate = f" ({self._frames / seconds:.1f} frames/s)" if self._frames > 1 else ""
        self._lines.line(f"{self._before + self._frames} frames in {seconds:.1f} s{rate} -> {out}")
