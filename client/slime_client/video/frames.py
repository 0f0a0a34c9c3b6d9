"""How one frame of a clip follows the other: which pictures are still, and what masks the answers make, in order.

What waits, and where it is asked for, is `slime_client.video.flight`'s. No threads here.
"""

import os
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from slime_client.core import Scores
from slime_client.errors import INTERNAL, INVALID_ARGUMENT, SegmenterError
from slime_client.images import bad, encode
from slime_client.mask import Mask
from slime_client.video.reading import Clip, Picture, opened
from slime_client.video.smoothing import TOGETHER, Settings, Smooth, Smoother

# A run can go on from every picture whose place is a multiple of this: nothing before it is needed but the history of
# the smoother, which is saved there. So the first picture of such a piece is always sent, and its overlay begins anew.
PIECE = 100
# Of the pictures that wait for those that follow them, with their masks: fewer of larger ones wait.
_WAITING_BYTES = 1 << 29
# A picture is still where no block of so many pixels a side differs by more than so many of 255 levels in its mean.
_BLOCK, _STILL_LEVELS = 16, 2


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
        self._smoother, self._shape = self._new_smoother(0, 0), [0, 0, 0]
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
        self._smoother = self._new_smoother(*self._shape[:2])
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
            self._smoother, self._shape = self._new_smoother(*shape[:2]), shape
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

    def _new_smoother(self, height: int, width: int) -> Smoother:
        settings, most = Settings(), _WAITING_BYTES // max(1, 4 * height * width) - TOGETHER
        # The freshest frame is wanted now.
        ahead = 0 if self._how.freshest else max(0, min(settings.ahead, most))
        return Smoother(self._how.smooth, replace(settings, ahead=ahead))
