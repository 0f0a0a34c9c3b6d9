"""From a clip's pictures to frames with masks: several requests in flight, answers in order, memory bounded.

    clip > Ahead (a thread that reads) > Window (what to send next, what is ready) > Track (still, smoothed) > Frame

`slime_client.blocking` and `slime_client.aio` drive a `Window`, each in its own way. Neither decides anything.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from slime_client.core import Scores
from slime_client.errors import INTERNAL, INVALID_ARGUMENT, SegmenterError
from slime_client.images import bad, encode
from slime_client.mask import Mask
from slime_client.video.reading import Clip, Picture, opened
from slime_client.video.smoothing import Settings, Smooth, Smoother

# A run can go on from every picture whose place is a multiple of this: nothing before it is needed but the history of
# the smoother, which is saved there. So the first picture of such a piece is always sent, and its overlay begins anew.
PIECE = 100
# Pictures that wait to be sent, beside those in flight.
_AHEAD = 2
# In flight of a live source, whose frames are to be fresh rather than many.
FRESHEST_CONCURRENCY = 2
# A picture is still where no block of so many pixels a side differs by more than so many of 255 levels in its mean.
_BLOCK, _STILL_LEVELS = 16, 2
_GONE_S = 2.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """One frame of a clip with its mask.

    Attributes:
        index: its place among all pictures of the clip, from 0; with a stride, not every number occurs.
        time: seconds since the clip's first picture.
        name: what its results are called: a frame's own name, or the index in six digits.
        image: uint8 (H, W, 3), RGB, upright.
        mask: its mask, of the size of `image`.
        reused: the mask is made of the answer to an earlier frame, because hardly anything had changed.
    """

    index: int
    time: float
    name: str
    image: npt.NDArray[np.uint8]
    mask: Mask
    reused: bool = False


@dataclass(frozen=True, kw_only=True)
class Following:
    """How one frame follows the other.

    Attributes:
        smooth: "none" gives each frame the mask of a single image; "mean" and "flow" average scores over frames.
        stride: every so many-th picture is segmented; the others are left out.
        skip_still: a picture that hardly differs from the one that was sent last gets the answer to that.
        freshest: of a camera or stream, the newest picture is segmented, and those in between are left out.
        max_staleness: with `freshest`, a picture that has waited for more seconds is left out too.

    Raises:
        SegmenterError: INVALID_ARGUMENT for a value that is none of these.
    """

    smooth: Smooth = "none"
    stride: int = 1
    skip_still: bool = False
    freshest: bool = False
    max_staleness: float = 0.5

    def __post_init__(self) -> None:
        if self.smooth not in get_args(Smooth):
            raise bad("smooth", repr(self.smooth), " or ".join(get_args(Smooth)))
        if not isinstance(self.stride, int) or self.stride < 1:
            raise bad("stride", repr(self.stride), "a whole number of at least 1")
        if not self.max_staleness > 0:
            raise bad("max_staleness", repr(self.max_staleness), "seconds, more than 0")

    @property
    def follows(self) -> bool:
        """Whether a frame's mask follows from those before."""
        return self.smooth != "none" or self.skip_still

    @property
    def scores(self) -> Scores:
        """What is asked for beside the mask."""
        return False if self.smooth == "none" else "sharpened"

    def opened(self, source: str | os.PathLike[str], rate: float) -> Clip:
        """Return the clip at `source`, as `reading.opened` does. Raises SegmenterError if it cannot be followed so."""
        clip = opened(source, rate)
        if self.freshest and not clip.live:
            message = f"{clip.source}: is no camera or stream, so every frame of it can be had"
            raise SegmenterError(f"{message}; leave freshest out, or give a stride", INVALID_ARGUMENT)
        return clip


class Track:
    """Follows a clip: says which pictures are still, and makes the answers masks of frames, in order."""

    def __init__(self, how: Following) -> None:
        self._how, self._taken, self._given = how, 0, 0
        self._sent: npt.NDArray[np.int16] | None = None
        self._smoother, self._shape = self._new_smoother(), [0, 0, 0]
        self._waiting: deque[Frame] = deque()  # for the smoother, with the masks of single frames

    @property
    def waits(self) -> bool:
        """Whether there are frames that the smoother has not decided."""
        return bool(self._waiting)

    def history(self) -> dict[str, npt.NDArray[Any]]:
        """Return what the frames so far leave behind for those that follow, as arrays by name; none may wait."""
        return {"shape": np.array(self._shape), **self._smoother.history()}

    def go_on(self, history: Mapping[str, npt.NDArray[Any]]) -> None:
        """Follow frames whose `history` was this."""
        self._shape = history["shape"].tolist()
        self._smoother.go_on({name: array for name, array in history.items() if name != "shape"})

    def is_still(self, picture: Picture) -> bool:
        """Return whether the picture can have the answer to the one that was sent last; otherwise, it is to be sent."""
        begins = self._taken % PIECE == 0
        self._taken += 1
        if not self._how.skip_still:
            return False
        reduced = Image.fromarray(picture.image).reduce(min(_BLOCK, *picture.image.shape[:2]))
        means = np.asarray(reduced, np.int16)
        before, self._sent = self._sent, means
        if begins or before is None or before.shape != means.shape:
            return False
        still = bool(np.abs(means - before).max() <= _STILL_LEVELS)
        if still:  # Compared with what was sent, so that what changes slowly is sent at last.
            self._sent = before
        return still

    def frames(self, picture: Picture, answer: Mask, reused: bool) -> list[Frame]:
        """Return the frames that are decided now, from a picture and the answer to it, or to an earlier one."""
        if answer.array.shape != picture.image.shape[:2]:
            message = f"frame {picture.index}: got a mask {answer.array.shape}, expected {picture.image.shape[:2]}"
            raise SegmenterError(f"{message}, the frame's size", INTERNAL)
        frame = Frame(
            index=picture.index,
            time=picture.time,
            name=picture.name,
            image=picture.image,
            mask=answer if not reused else replace(answer, source=encode(picture.image)),
            reused=reused,
        )
        if self._how.smooth == "none":
            return [frame]
        if answer.scores is None:
            raise AssertionError("an answer that is to be smoothed has scores")
        decided, shape = [], [*picture.image.shape[:2], len(answer.parts)]
        # What came before says nothing of a picture of another size, or of other parts.
        if shape != self._shape:
            decided = self.rest()
            self._smoother, self._shape = self._new_smoother(), shape
        self._waiting.append(frame)
        decided += self._decided(self._smoother(picture.image, answer.scores))
        self._given += 1
        # Where a run may be taken up, nothing waits: what is saved there is the history alone.
        return decided + self.rest() if self._given % PIECE == 0 else decided

    def rest(self) -> list[Frame]:
        """Return the frames that wait, at the end."""
        return self._decided(self._smoother.rest())

    def _decided(self, masks: list[npt.NDArray[np.uint8]]) -> list[Frame]:
        frames = (self._waiting.popleft() for _ in masks)
        return [replace(frame, mask=replace(frame.mask, array=mask)) for frame, mask in zip(frames, masks, strict=True)]

    def _new_smoother(self) -> Smoother:
        # The freshest frame is wanted now.
        return Smoother(self._how.smooth, Settings(ahead=0) if self._how.freshest else None)


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
