"""From a clip's pictures to frames with masks: several requests in flight, answers in order, memory bounded.

    clip > Ahead (a thread that reads) > Window (what to send next, what is ready) > Track (still, smoothed) > Frame

`slime_client.blocking` and `slime_client.aio` drive a `Window`, each in its own way. Neither decides anything.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from slime_client.errors import SegmenterError
from slime_client.mask import Mask
from slime_client.video.frames import Following, Frame, Track
from slime_client.video.reading import Clip, Picture

# Pictures that wait to be sent, beside those in flight.
_AHEAD = 2
# In flight of a live source, whose frames are to be fresh rather than many.
FRESHEST_CONCURRENCY = 2
_GONE_S = 2.0


class Ahead:
    """Reads pictures in a thread of its own, a few ahead; of a live source, on wish, only the newest is kept.

    Args:
        pictures: read to their end, or until `close`.
        how: whether only the freshest are wanted.
        changed: called, in the thread, whenever a picture has come or the last one has.
    """

    def __init__(self, pictures: Iterator[Picture], how: Following, changed: Callable[[], object]) -> None:
        self._pictures, self._how, self._changed = pictures, how, changed
        self._lock = threading.Condition()
        self._waiting: deque[Picture] = deque(maxlen=1 if how.freshest else None)
        self._error: BaseException | None = None
        self._ended = self._closed = False
        self.left_out = 0
        self._thread = threading.Thread(target=self._read, name="slime-video", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether there will be no further picture."""
        with self._lock:
            return self._ended and not self._waiting

    @property
    def over(self) -> bool:
        """Whether there will be no further picture. Raises what reading ended with."""
        with self._lock:
            if self._ended and not self._waiting and self._error is not None:
                raise self._error
            return self._ended and not self._waiting

    def take(self) -> Picture | None:
        """Return the next picture, or None where none waits now."""
        with self._lock:
            while self._waiting:
                picture = self._waiting.popleft()
                self._lock.notify_all()
                if not self._how.freshest or time.monotonic() - picture.arrived <= self._how.max_staleness:
                    return picture
                self.left_out += 1
        return None

    def close(self) -> None:
        """Stop reading."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
            self._lock.notify_all()
        # A camera that says nothing holds its thread until it is given up; nobody waits for that.
        self._thread.join(_GONE_S)

    def _read(self) -> None:
        try:
            for picture in self._pictures:
                with self._lock:
                    self._lock.wait_for(lambda: self._closed or self._how.freshest or len(self._waiting) < _AHEAD)
                    if self._closed:
                        return
                    self.left_out += self._how.freshest and bool(self._waiting)
                    self._waiting.append(picture)
                self._tell()
        except BaseException as error:  # Whoever takes the pictures is told, whatever it is.
            self._error = error
        finally:
            with suppress(Exception):
                self._pictures.close()  # type: ignore[attr-defined]
            self._ended = True
            self._tell()

    def _tell(self) -> None:
        with suppress(RuntimeError):  # An event loop that was closed.
            self._changed()


class Pending(Protocol):
    """A future or a task."""

    def done(self) -> bool: ...
    def result(self) -> Mask: ...
    def cancel(self) -> object: ...


Answer = TypeVar("Answer", bound=Pending)


class Window(Generic[Answer]):
    """The pictures in flight, at most `concurrency`; says what is to be done next. Frames leave in order.

    Used so: `sent(picture, answer)` for what `to_send()` returns; `landed()`, where it is not None, makes the next
    frames; where both are None, wait until something changes, unless it is `over`.
    """

    def __init__(self, ahead: Ahead, track: Track, concurrency: int) -> None:
        self._ahead, self._track, self._concurrency = ahead, track, concurrency
        self._flying: deque[tuple[Picture, Answer, bool]] = deque()
        self._latest: Answer | None = None

    @property
    def over(self) -> bool:
        """Whether every frame has left."""
        return not self._flying and not self._track.waits and self._ahead.over

    def to_send(self) -> Picture | None:
        """Return the next picture to send, if there is room and one has come."""
        while len(self._flying) < self._concurrency and (picture := self._ahead.take()) is not None:
            if not self._track.is_still(picture) or self._latest is None:
                return picture
            self._flying.append((picture, self._latest, True))
        return None

    def sent(self, picture: Picture, answer: Answer) -> None:
        """Note what will be the answer to the picture."""
        self._latest = answer
        self._flying.append((picture, answer, False))

    def landed(self) -> Callable[[], list[Frame]] | None:
        """Return what makes the next frames, if any, where an answer is there; calling it may take a while."""
        if not self._flying:
            return self._track.rest if self._track.waits and self._ahead.ended else None
        if not self._flying[0][1].done():
            return None
        picture, answer, reused = self._flying.popleft()
        return lambda: self._track.frames(picture, _told(picture, answer), reused)

    def give_up(self) -> list[Answer]:
        """Cancel what is in flight, and return it."""
        given_up = [answer for _, answer, _ in self._flying]
        for answer in given_up:
            answer.cancel()
        return given_up


def _told(picture: Picture, answer: Pending) -> Mask:
    """Return the answer. Raises its SegmenterError with the frame's number."""
    try:
        return answer.result()
    except SegmenterError as error:
        raise SegmenterError(f"frame {picture.index}: {error}", error.code) from error


def frames(
    submit: Callable[[npt.NDArray[np.uint8]], "Future[Mask]"],
    clip: Clip,
    track: Track,
    how: Following,
    *,
    concurrency: int,
    start: int = 0,
) -> Generator[Frame, None, None]:
    """Yield the frames of a clip; `submit` sends an image. Stopping early gives up the rest.

    `start` is the index of the first picture that is wanted.
    """
    changed = threading.Event()
    ahead = Ahead(clip.read(how.stride, start), how, changed.set)
    window: Window[Future[Mask]] = Window(ahead, track, concurrency)
    try:
        while not window.over:
            changed.clear()
            while (picture := window.to_send()) is not None:
                answer = submit(picture.image)
                answer.add_done_callback(lambda _: changed.set())
                window.sent(picture, answer)
            if (made := window.landed()) is not None:
                yield from made()
            elif not window.over:
                changed.wait()
    finally:
        window.give_up()
        ahead.close()
