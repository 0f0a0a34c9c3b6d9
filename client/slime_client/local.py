"""A segmenter in this process, in place of a served one: what the command needs of it, around a callable.

This package knows nothing of how masks are made. Who has a segmenter here (`slime segment --local`) hands one over.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
import numpy.typing as npt

from slime_client.core import Scores
from slime_client.errors import INTERNAL, INVALID_ARGUMENT, SegmenterError
from slime_client.images import ImageLike, encode
from slime_client.lookup import Description
from slime_client.mask import Mask


@dataclass(frozen=True, kw_only=True)
class LocalSegmenter(AbstractContextManager["LocalSegmenter", None]):
    """A segmenter of this process.

    Attributes:
        description: its name, parts and colours, as a server would tell them.
        mask_of: encoded image (a file's bytes) -> uint8 (H, W), indices into the parts, of the image as seen. It raises
            ValueError for what it cannot read. One image is segmented at a time, so it need not be safe for threads.
        concurrency: images in flight; the others are read and written while one is segmented.
        timeout: seconds that an image may take.
    """

    description: Description
    mask_of: Callable[[bytes], npt.NDArray[np.uint8]]
    concurrency: int = 2
    timeout: float = float("inf")
    _turn: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def name(self) -> str:
        """What the results are told to come from."""
        return self.description.name

    @property
    def parts(self) -> tuple[str, ...]:
        """The part names, background first."""
        return self.description.parts

    def segment(self, image: ImageLike) -> Mask:
        """Return the image's mask.

        Raises:
            SegmenterError: INVALID_ARGUMENT for an image that cannot be read, INTERNAL where segmenting it failed.
        """
        encoded = encode(image)
        try:
            with self._turn:
                mask_HW = self.mask_of(encoded.data)
        except ValueError as error:
            raise SegmenterError(f"{encoded.label}: {error}", INVALID_ARGUMENT) from error
        except (RuntimeError, MemoryError) as error:
            raise SegmenterError(f"{encoded.label}: cannot be segmented ({error})", INTERNAL) from error
        return Mask(array=mask_HW, parts=self.parts, colours=self.description.colours, source=encoded)

    def submit(self, image: ImageLike, *, scores: Scores = False, timeout: float | None = None) -> "Future[Mask]":
        """Do `segment`, and return a future that is done."""
        future: Future[Mask] = Future()
        try:
            if scores:
                message = f"segmenter {self.name!r}: gives no scores without a server; smooth nothing, or serve it"
                raise SegmenterError(message, INVALID_ARGUMENT)
            future.set_result(self.segment(image))
        except SegmenterError as error:
            future.set_exception(error)
        return future

    def live(self) -> bool:
        """Return whether it answers: always."""
        return True

    def close(self) -> None:
        """Do nothing: an image that is being segmented is finished."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
