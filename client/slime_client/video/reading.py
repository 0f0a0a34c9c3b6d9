"""Pictures of a clip, one after the other: a video file, a folder of frames, pages of a .tif, a camera or a stream.

Video files, cameras and streams are decoded by PyAV, the extra `video`, which is imported when one is opened; folders
and stacks need Pillow alone. Pictures come upright: rotation in a file's metadata is applied. Sound is left out.

Letters in names: H, W pixels of the picture as seen.
"""

import importlib.util
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from slime_client.errors import FAILED_PRECONDITION, INVALID_ARGUMENT, SegmenterError
from slime_client.images import as_rgb, bad, decode, encodable, encode
from slime_client.jobs import distinct_stems, images_of

# fmt: off
SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp",
    ".ogv", ".h264", ".hevc", ".y4m",
)
# fmt: on
PAGED = (".tif", ".tiff", ".gif", ".png", ".apng", ".webp", ".avif")
DEFAULT_RATE = 25.0
# A camera or a server of a stream that says nothing for so long is gone.
_SILENCE_S = 10.0
# A file that ends so much before its own length was cut off.
_CUT_S = 0.5
_MISSING = "slime-serve[video]"


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """One picture of a clip.

    Attributes:
        index: its place among all pictures of the clip, from 0.
        time: seconds since the clip's first picture.
        name: what its results are called: a frame's own name, or the index in six digits.
        image: uint8 (H, W, 3), RGB, upright.
        arrived: the monotonic clock's seconds when it had been read.
    """

    index: int
    time: float
    name: str
    image: npt.NDArray[np.uint8]
    arrived: float = field(default_factory=monotonic)


@dataclass(kw_only=True)
class Clip:
    """What a source of pictures says of itself, and its pictures.

    Attributes:
        source: what was opened.
        live: a camera or a stream, which does not wait for whoever reads it.
        pictures: how many it has; None where that is not known.
        seconds: how long it is; None where that is not known.
        damage: what was wrong with it, once it has been read; "" for nothing.
    """

    source: str
    live: bool = False
    pictures: int | None = None
    seconds: float | None = None
    damage: str = ""

    def read(self, stride: int = 1, start: int = 0) -> Iterator[Picture]:
        """Yield every picture whose index is a multiple of `stride` and at least `start`.

        Raises:
            SegmenterError: INVALID_ARGUMENT where none can be read, or one cannot be used.
        """
        raise NotImplementedError


def is_clip(argument: str) -> bool:
    """Return whether the words of a command line mean a video file, a camera or a stream."""
    return _is_live(argument) or Path(argument).suffix.lower() in SUFFIXES


def opened(source: str | os.PathLike[str], rate: float = DEFAULT_RATE) -> Clip:
    """Return the clip at `source`.

    Args:
        source: a video file, a folder of frames, a file of several pages, a camera such as /dev/video0, or a URL.
        rate: pictures a second of folders and pages, which have no times of their own.

    Raises:
        SegmenterError: INVALID_ARGUMENT for what is no clip; FAILED_PRECONDITION where PyAV is missing.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise bad("video", type(source).__name__, "the path of a video or a folder of frames, a camera or a URL")
    if not rate > 0:
        raise bad("fps", str(rate), "pictures a second, more than 0")
    text, path = os.fspath(source), Path(source)
    if _is_live(text):
        return _Video(text, live=True)
    try:
        if not path.exists():
            raise SegmenterError(f"{path}: no such file; check the path", INVALID_ARGUMENT)
        if path.is_dir():
            return _Folder(path, rate)
        if path.suffix.lower() in PAGED:
            return _Pages(path, rate)
    except (OSError, ValueError) as error:
        raise SegmenterError(f"{path}: cannot be read ({error}); check its permissions", INVALID_ARGUMENT) from error
    return _Video(text)


def require_pyav(wanted_for: str) -> Any:
    """Return the module `av`. Raises SegmenterError (FAILED_PRECONDITION) where PyAV is missing."""
    if importlib.util.find_spec("av") is None:
        message = f"{wanted_for}: videos are read and written by PyAV, which is missing; pip install '{_MISSING}'"
        raise SegmenterError(message, FAILED_PRECONDITION)
    import av

    return av


class _Folder(Clip):
    """The images of a folder in the order of their names, where numbers count as numbers: 2 comes before 10."""

    def __init__(self, folder: Path, rate: float) -> None:
        self.files = sorted(images_of(folder), key=lambda path: _natural(path.name))
        if not self.files:
            raise SegmenterError(f"{folder}: no images found; give a folder of frames", INVALID_ARGUMENT)
        super().__init__(source=str(folder), pictures=len(self.files), seconds=len(self.files) / rate)
        self._rate = rate

    def read(self, stride: int = 1, start: int = 0) -> Iterator[Picture]:
        names = distinct_stems(self.files)
        for index in range(-(-start // stride) * stride, len(self.files), stride):
            image = np.asarray(decode(encode(self.files[index])))
            yield Picture(index=index, time=index / self._rate, name=names[index], image=image)


class _Pages(Clip):
    """The pages of one file, such as the slices of a volume."""

    def __init__(self, path: Path, rate: float) -> None:
        with Image.open(path) as picture:
            pages = getattr(picture, "n_frames", 1)
        super().__init__(source=str(path), pictures=pages, seconds=pages / rate)
        self._rate = rate

    def read(self, stride: int = 1, start: int = 0) -> Iterator[Picture]:
        with Image.open(self.source) as picture:
            for index in range(-(-start // stride) * stride, self.pictures or 0, stride):
                label = f"{self.source}, page {index}"
                try:
                    picture.seek(index)
                    image = np.asarray(as_rgb(encodable(picture, label)))
                except (OSError, EOFError, ValueError, SyntaxError) as error:
                    raise bad(label, f"{error}", "a picture that can be read; is the file cut off?") from error
                yield Picture(index=index, time=index / self._rate, name=f"{index:06}", image=image)


class _Video(Clip):
    """What PyAV decodes. Opened at once, so that what cannot be opened is told at once."""

    def __init__(self, source: str, *, live: bool = False) -> None:
        super().__init__(source=source, live=live)
        av = require_pyav(source)
        device = self.source.startswith("/dev/")
        options = {"rtsp_transport": "tcp"} if self.source.startswith("rtsp") else {}
        try:
            self._container = av.open(
                self.source,
                format="v4l2" if device else None,
                options=options,
                timeout=_SILENCE_S if self.live else None,
            )
        except (av.error.FFmpegError, OSError, ValueError) as error:
            hint = "is it on, and may you use it?" if self.live else "is it a video, and whole?"
            raise SegmenterError(
                f"{self.source}: cannot be opened ({_said(error)}); {hint}", INVALID_ARGUMENT
            ) from error
        covers = av.stream.Disposition.attached_pic
        streams = [each for each in self._container.streams.video if not each.disposition & covers]
        if not streams:
            others = ", ".join(sorted({each.type for each in self._container.streams})) or "nothing"
            self._container.close()
            raise SegmenterError(f"{self.source}: got {others}, expected a video; has it a picture?", INVALID_ARGUMENT)
        self._stream = streams[0]
        self._stream.thread_type = "AUTO"
        self._rate = float(self._stream.average_rate or DEFAULT_RATE)
        if not self.live:
            self.seconds = self._told_seconds()
            self.pictures = self._stream.frames or (round(self.seconds * self._rate) if self.seconds else None)

    def _told_seconds(self) -> float | None:
        """Return how long the file says that its pictures go on: the stream, or the whole file where it is alone."""
        stream, clock = self._stream, re.fullmatch(r"(\d+):(\d+):([\d.]+)", self._stream.metadata.get("DURATION", ""))
        if stream.duration:
            return float(stream.duration * stream.time_base)
        if clock:
            return int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3])
        duration = self._container.duration
        return duration / 1e6 if duration and len(self._container.streams) == 1 else None

    def read(self, stride: int = 1, start: int = 0) -> Iterator[Picture]:
        av = require_pyav(self.source)
        seen, first, last, spoilt = 0, 0.0, 0.0, 0
        with self._container:
            packets, broken = self._container.demux(self._stream), ""
            while not broken:
                try:
                    frames = next(packets).decode()
                except StopIteration:
                    break
                except av.error.InvalidDataError:
                    spoilt += 1
                    continue
                except (av.error.FFmpegError, OSError) as error:
                    broken = _said(error)
                    break
                for frame in frames:
                    spoilt += frame.is_corrupt
                    told = first + last + 1 / self._rate if frame.time is None else float(frame.time)
                    if seen:  # Times of broken files run backwards; those of a clip never do.
                        last = max(told - first, last + 1e-3)
                    else:
                        first = told
                    if seen % stride == 0 and seen >= start:
                        image = self._upright(frame)
                        yield Picture(index=seen, time=last, name=f"{seen:06}", image=image)
                    seen += 1
        if not seen:
            reason = broken or f"{spoilt} broken packets" if broken or spoilt else "it is empty"
            raise SegmenterError(f"{self.source}: no picture can be decoded ({reason}); is it whole?", INVALID_ARGUMENT)
        self.damage = self._what_is_wrong(seen, last, spoilt, broken)

    def _upright(self, frame: Any) -> npt.NDArray[np.uint8]:
        image: npt.NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
        turns, rest = divmod(frame.rotation, 90)
        if rest:
            message = f"{self.source}: is to be shown turned by {frame.rotation} degrees, expected a multiple of 90"
            raise SegmenterError(f"{message}; convert it first", INVALID_ARGUMENT)
        # FFmpeg and numpy both turn against the clock.
        return np.ascontiguousarray(np.rot90(image, turns)) if turns % 4 else image

    def _what_is_wrong(self, seen: int, last: float, spoilt: int, broken: str) -> str:
        found = [f"{spoilt} pictures or packets are damaged"] if spoilt else []
        if broken:
            found.append(f"reading ended after {seen} pictures ({broken})")
        elif not self.live:
            # Of a QuickTime or MP4 file that was trimmed, some pictures are not meant to be shown.
            counted = self._stream.frames if "mov" not in self._container.format.name else 0
            short = self.seconds is not None and last + 2 / self._rate + _CUT_S < self.seconds
            if short or seen + spoilt < counted:
                whole = f"{self.seconds:.1f} s" if short else f"{counted} pictures"
                found.append(f"it ends after {seen} pictures, {last:.1f} s, of {whole}: it is cut off")
        return "; ".join(found)


def _is_live(source: str) -> bool:
    return "://" in source or source.startswith("/dev/video")


def _said(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _natural(name: str) -> list[tuple[int, str]]:
    """Return what sorts names with numbers in them by the numbers' size."""
    return [(int(word), "") if word.isdecimal() else (-1, word.casefold()) for word in re.split(r"(\d+)", name) if word]
