"""Small clips, made with PyAV, each picture telling its place by its grey; and a segmenter of this process."""

from __future__ import annotations

import math
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slime_client import Description, Mask
from slime_client.images import encode
from slime_client.video.frames import Scores

Image = npt.NDArray[np.uint8]
PARTS = ("background", "body", "wheel")
COLOURS = ((0, 0, 0), (200, 30, 30), (30, 30, 200))


def picture(number: int, width: int = 32, height: int = 16) -> Image:
    """Grey 8 * `number` (of 31), with a white square in its upper left corner."""
    image = np.full((height, width, 3), 8 * (number % 31), np.uint8)
    image[: height // 4, : height // 4] = 255
    return image


def number_of(image: Image) -> int:
    """The number that `picture` was made of, also after a codec."""
    return round(float(image[image.shape[0] // 2 :, image.shape[1] // 2 :].mean()) / 8)


def clip(
    path: Path,
    pictures: Iterable[Image],
    *,
    rate: int = 10,
    ticks: Callable[[int], int] = lambda place: place,
    rotation: int = 0,
    sound: bool = False,
    form: str | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """A video with these pictures, picture n shown at ticks(n) / `rate` seconds."""
    import av

    pictures = list(pictures)
    height, width = pictures[0].shape[:2]
    with av.open(str(path), "w", format=form, options=options or {}) as container:
        stream: Any = container.add_stream("libx264", rate=rate, options={"crf": "4", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p"
        voice: Any = container.add_stream("aac" if path.suffix != ".mkv" else "libopus", rate=48000) if sound else None
        for place, image in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = ticks(place), Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if voice is not None:
            quiet = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.float32), format="fltp", layout="mono")
            quiet.sample_rate, quiet.pts = 48000, 0
            container.mux(voice.encode(quiet))
            container.mux(voice.encode(None))
    if rotation:
        turn(path, rotation)
    return path


def turn(path: Path, degrees: int) -> None:
    """Write into the track's header of an MP4 file that its pictures are to be shown turned against the clock."""
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    fixed = [round(each * 65536) for each in (cosine, -sine, 0, sine, cosine, 0, 0, 0)]
    struct.pack_into(">8i", content, matrix, *fixed)
    path.write_bytes(content)


def sound_alone(path: Path) -> Path:
    """A file with sound and no picture."""
    import av

    with av.open(str(path), "w") as container:
        voice: Any = container.add_stream("aac", rate=48000)
        quiet = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.float32), format="fltp", layout="mono")
        quiet.sample_rate, quiet.pts = 48000, 0
        container.mux(voice.encode(quiet))
        container.mux(voice.encode(None))
    return path


class Here:
    """A segmenter of this process, with threads as a server has: a pixel's part follows from its brightness.

    `asked` has the number of each picture that was sent; `gate`, where it is set, is passed before each answer.
    """

    name = "car"
    parts, colours = PARTS, COLOURS
    concurrency, timeout = 4, 30.0
    description = Description(name="car", parts=PARTS, colours=COLOURS, model="here", about={})

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.flying = self.most_flying = 0
        self.before_answer: Callable[[int], None] = lambda number: None
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(16)

    def submit(self, image: Image, *, scores: Scores = False, timeout: float | None = None) -> Future[Mask]:
        with self._lock:
            self.asked.append(number_of(image))
            self.flying += 1
            self.most_flying = max(self.most_flying, self.flying)
        return self._pool.submit(self._answer, image, scores)

    def _answer(self, image: Image, scores: Scores) -> Mask:
        try:
            self.before_answer(number_of(image))
            return answered(image, scores)
        finally:
            with self._lock:
                self.flying -= 1

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)


def scores_of(image: Image) -> npt.NDArray[np.float32]:
    """float32 (3, H / 2, W / 2): near 0, near 85 and near 255."""
    grey = image[::2, ::2].mean(2, dtype=np.float32)
    return np.stack([-np.abs(grey - level) / 255 for level in (0, 85, 255)]).astype(np.float32)


def answered(image: Image, scores: Scores = False) -> Mask:
    """What the segmenter answers."""
    maps = scores_of(image)
    mask = maps.argmax(0).astype(np.uint8).repeat(2, 0).repeat(2, 1)[: image.shape[0], : image.shape[1]]
    kept = maps if scores else None
    return Mask(array=mask, parts=PARTS, colours=COLOURS, scores=kept, source=encode(image))


@contextmanager
def streamed(content: bytes) -> Iterator[str]:
    """Yield the URL of a live stream: a listener that sends one clip to whoever connects, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def send() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(content)

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(20)
