"""overlay.mp4: a clip with its parts tinted. Encoded as it goes, so that memory stays bounded and a run can go on.

Pictures are encoded into a growing file of H.264, in pieces that need nothing of each other. Where a run goes on, the
file is cut after its last whole piece, so that the pieces are those of a run that was never stopped. At the end, also
after Ctrl-C, `finished` puts the pictures with their times into an MP4 file, without encoding them again.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from slime_client.errors import FAILED_PRECONDITION, SegmenterError
from slime_client.video.reading import require_pyav

FILE, _GROWING, _UNDONE = "overlay.mp4", ".slime-video.h264", ".slime-video.mp4"
_CODEC = "libx264"
_CLOCK, _RATE = Fraction(1, 90_000), Fraction(1, 25)
# No picture refers to a later one, so that pictures lie in the file in the order of their times. And none is looked
# ahead to: of small pictures x264 then reads what was never written, and once in thirty times encodes them otherwise.
_OPTIONS = {"crf": "20", "preset": "veryfast", "bf": "0", "rc-lookahead": "0"}


def check() -> None:
    """Check that overlays can be encoded here. Raises SegmenterError (FAILED_PRECONDITION) otherwise."""
    if _CODEC not in require_pyav(FILE).codecs_available:
        message = f"{FILE}: this PyAV cannot encode H.264 ({_CODEC} is missing); install the one of PyPI, or"
        raise SegmenterError(f"{message} choose another --format", FAILED_PRECONDITION)


class Overlay:
    """The overlay of a clip in the folder `out`, of which the first `kept` bytes of before are kept.

    All its pictures have the size of the first: (width, height) of the clip's first frame, made even by a repeated
    row or column.
    """

    def __init__(self, out: Path, kept: int = 0) -> None:
        self._av = require_pyav(FILE)
        self._out = out
        self._encoder: Any = None
        self._pictures = 0  # of this piece
        self._file = (out / _GROWING).open("ab")
        self._file.truncate(kept)
        self._file.seek(kept)

    def add(self, picture: Image.Image, size: tuple[int, int]) -> None:
        """Encode the next picture, shrunk or enlarged to `size` where it has another."""
        fitted = picture if picture.size == size else picture.resize(size)
        width, height = size
        pixels_HW3 = np.pad(np.asarray(fitted), ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self._encoder is None:
            self._encoder, self._pictures = self._new_encoder(pixels_HW3.shape[1], pixels_HW3.shape[0]), 0
        frame = self._av.VideoFrame.from_ndarray(pixels_HW3, format="rgb24")
        frame.pts, frame.time_base, self._pictures = self._pictures, _RATE, self._pictures + 1
        self._write(frame)

    def end_piece(self) -> int:
        """End the piece: what follows will need nothing of it. Return how many bytes there are now."""
        if self._encoder is not None:
            self._write(None)
            self._encoder = None
        self._file.flush()
        return self._file.tell()

    def finished(self, times: Iterable[float], whole: bool) -> None:
        """Write overlay.mp4 with the pictures so far, shown at `times` (seconds); `whole`: there will be no more."""
        if self.end_piece():
            self._mux(times)
        self._file.close()
        if whole:
            (self._out / _GROWING).unlink(missing_ok=True)

    def _new_encoder(self, width: int, height: int) -> Any:
        encoder = self._av.CodecContext.create(_CODEC, "w")
        encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
        encoder.time_base, encoder.options = _RATE, _OPTIONS
        return encoder

    def _write(self, frame: Any) -> None:
        self._file.writelines(bytes(packet) for packet in self._encoder.encode(frame))

    def _mux(self, times: Iterable[float]) -> None:
        undone = self._out / _UNDONE
        try:
            with (
                self._av.open(str(self._out / _GROWING), format="h264") as pictures,
                self._av.open(str(undone), "w", format="mp4", options={"movflags": "faststart"}) as film,
            ):
                stream = film.add_stream_from_template(pictures.streams.video[0])
                stream.time_base = _CLOCK
                packets = (packet for packet in pictures.demux(video=0) if packet.size)
                for packet, (start, length) in zip(packets, _ticks(times), strict=False):
                    packet.stream, packet.time_base = stream, _CLOCK
                    packet.pts = packet.dts = start
                    packet.duration = length
                    film.mux(packet)
            undone.replace(self._out / FILE)
        finally:
            with suppress(OSError):
                undone.unlink(missing_ok=True)


def removed(out: Path) -> None:
    """Remove the overlay of a run before."""
    for name in (FILE, _GROWING, _UNDONE):
        (out / name).unlink(missing_ok=True)


def _ticks(times: Iterable[float]) -> Iterator[tuple[int, int]]:
    """Yield when each picture is shown, and for how long: the last one as long as the one before."""
    length = int(_RATE / _CLOCK)
    ticks = (round(seconds / _CLOCK) for seconds in times)
    for start, following in pairwise(chain(ticks, [None])):
        if start is not None:
            length = following - start if following is not None else length
            yield start, length
