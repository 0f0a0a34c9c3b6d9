"""A served segmenter without a way to reach it: what is asked, in which order, and what the answers mean.

`slime_client.Segmenter` and `slime_client.aio.Segmenter` derive from it and take its steps, each in its own way.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

from slime_client import lookup, names, protocol
from slime_client.access import Access, is_this_machine
from slime_client.description import Description, from_registry
from slime_client.errors import FAILED_PRECONDITION, INTERNAL, INVALID_ARGUMENT, NOT_FOUND, SegmenterError
from slime_client.images import EncodedImage, ImageLike, encode
from slime_client.inference import Answered, infer
from slime_client.mask import Colour, Mask
from slime_client.memory import Regions
from slime_client.retry import Deadline, Retry
from slime_client.server import Server
from slime_client.steps import Steps, Work

DEFAULT_TIMEOUT_S = 30.0
LIVE_TIMEOUT_S = 5.0
NOT_CONNECTED = "not connected yet; enter it with `async with`"
_CLOSING_S = 2.0
# Publishing takes 64.
_LONGEST_NAME = 256


class SegmenterCore:
    """One segmenter on one Triton server, over gRPC.

    Args:
        url: host:port of the server's gRPC endpoint, such as "localhost:8001".
        name: the segmenter's name; either form is found.
        timeout: seconds that connecting, and each `segment`, may take unless told otherwise, tries and pauses included.
        access: TLS, certificates and the server's key; plain text without.
        retry: how often an unavailable server is asked again.
        shared_memory: large images go through /dev/shm where the server is on this machine and allows it.
        compress: arrays and PIL images are sent as PNG rather than as raw pixels: for slow networks.

    Raises:
        SegmenterError: for anything that goes wrong; `.code` tells what.
    """

    def __init__(
        self,
        url: str,
        name: str,
        *,
        timeout: float = DEFAULT_TIMEOUT_S,
        access: Access | None = None,
        retry: Retry | None = None,
        shared_memory: bool = True,
        compress: bool = False,
    ) -> None:
        self._server = Server(url=checked_url(url), retry=retry or Retry())
        self._name = _checked_name(name)
        self._timeout = Deadline(timeout).seconds
        self._access = access or Access()
        self._encode: Callable[[ImageLike], EncodedImage] = partial(encode, compress=compress)
        self._regions = Regions(url, allowed=shared_memory and is_this_machine(url))
        self._closed = False
        self._description: Description | None = None
        self._by_version: dict[str, Description] = {}
        self._begin()

    def _begin(self) -> None:
        """What a transport does at once."""

    @property
    def name(self) -> str:
        """The segmenter's name."""
        return self._name

    @property
    def parts(self) -> tuple[str, ...]:
        """The part names, background first."""
        return self.description.parts

    @property
    def colours(self) -> tuple[Colour, ...]:
        """One (r, g, b), each 0..255, for each part."""
        return self.description.colours

    @property
    def description(self) -> Description:
        """What the server says of the segmenter, its form among it; of the newest version that answered."""
        if self._description is None:
            raise self._unusable(NOT_CONNECTED)
        return self._description

    def __repr__(self) -> str:
        parts = self._description and self._description.parts
        return f"Segmenter({self._server.url!r}, {self._name!r}, parts={parts!r})"

    def _connecting(self, deadline: Deadline | None = None) -> Steps[None]:
        self._description = yield from lookup.find(self._server, self._name, deadline or Deadline(self._timeout))

    def _segmenting(self, image: ImageLike, *, scores: bool, timeout: float | None) -> Steps[Mask]:
        if self._closed:
            raise self._unusable("closed; make a new Segmenter")
        deadline = Deadline(self._timeout if timeout is None else timeout)
        encoded: EncodedImage = yield Work(partial(self._encode, image))
        try:
            return (yield from self._answered(encoded, scores, deadline))
        except SegmenterError as error:
            if error.code != NOT_FOUND:
                raise
        # The version that answered was replaced in between, or the segmenter's form: its successor is asked instead.
        yield from self._connecting(deadline)
        return (yield from self._answered(encoded, scores, deadline))

    def _answered(self, image: EncodedImage, scores: bool, deadline: Deadline) -> Steps[Mask]:
        asked = self.description
        answered = yield from infer(self._server, self._regions, asked, image, scores, deadline)
        shared = asked.form == names.SHARED
        description = self._said(answered, asked) if shared else (yield from self._version(answered.version, deadline))
        return _mask(answered, description, image)

    def _said(self, answered: Answered, asked: Description) -> Description:
        description = from_registry(answered.said, url=self._server.url, segmenter=self._name)
        if description.model != asked.model:
            raise SegmenterError(f"segmenter {self._name!r}: moved to another model", NOT_FOUND)
        self._description = description
        return description

    def _version(self, version: str, deadline: Deadline) -> Steps[Description]:
        # Somebody may publish the segmenter anew, with other parts, while this object lives.
        if version not in self._by_version:
            found = yield from lookup.baked(self._server, self._name, version, deadline)
            self._by_version[version] = self._description = found
        return self._by_version[version]

    def _asking_live(self, timeout: float) -> Steps[bool]:
        alone = Server(url=self._server.url, retry=Retry(attempts=1))
        try:
            answer = yield from alone.ask("ServerLive", protocol.live(), Deadline(timeout), segmenter="*", subject="it")
        except SegmenterError:
            return False
        return bool(answer.live)

    def _closing(self) -> Steps[None]:
        yield from self._regions.close(Deadline(_CLOSING_S))

    def _unusable(self, why: str) -> SegmenterError:
        return SegmenterError(f"segmenter {self._name!r}: {why}", FAILED_PRECONDITION)


def _mask(answered: Answered, description: Description, source: EncodedImage) -> Mask:
    array: npt.NDArray[np.uint8] = answered.mask_HW
    parts, colours = description.parts, description.colours
    try:
        return Mask(array=array, parts=parts, colours=colours, scores=answered.scores_Khw, source=source)
    except SegmenterError as error:
        raise SegmenterError(f"{source.label}: the server's {error}; publish the segmenter again", INTERNAL) from error


def listing(url: str, timeout: float, retry: Retry | None) -> Steps[list[Description]]:
    """What `segmenters` of either transport asks. Raises SegmenterError at once for what cannot be an address."""
    return lookup.every(Server(url=checked_url(url), retry=retry or Retry()), Deadline(timeout))


def checked_url(url: str) -> str:
    """host:port.

    Raises:
        SegmenterError: INVALID_ARGUMENT for what cannot be one.
    """
    if not isinstance(url, str) or not url.strip() or "://" in url:
        raise SegmenterError(
            f"url: got {url!r}, expected host:port without a scheme, such as localhost:8001", INVALID_ARGUMENT
        )
    return url


def _checked_name(name: str) -> str:
    if not isinstance(name, str) or not name or len(name) > _LONGEST_NAME or not name.isascii():
        got = repr(name)[:_LONGEST_NAME]
        raise SegmenterError(f"segmenter: got {got}, expected the name it was published under", INVALID_ARGUMENT)
    return name
