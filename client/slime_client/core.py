"""One served segmenter without a network: what is asked, in which order, and what the answers mean.

`slime_client.Segmenter` and `slime_client.aio.Segmenter` derive from `SegmenterCore` and take its steps, each in its
own way. Letters in names: H, W pixels of the image as seen, K parts, h, w the score maps.
"""

import asyncio
import itertools
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
from tritonclient.grpc import service_pb2

from slime_client import lookup, protocol
from slime_client.access import Access, is_several, is_this_machine
from slime_client.errors import FAILED_PRECONDITION, INTERNAL, INVALID_ARGUMENT, NOT_FOUND, SegmenterError
from slime_client.images import EncodedImage, ImageLike, encode
from slime_client.lookup import Description
from slime_client.mask import Colour, Mask
from slime_client.memory import Region, Regions
from slime_client.protocol import SHARED, Asker, Deadline, Pause, Retry, Steps, Work

# For images that take no longer than a second; SegmenterCore.timeout and .concurrency follow those that do.
DEFAULT_TIMEOUT_S, DEFAULT_CONCURRENCY = 30.0, 8
LIVE_TIMEOUT_S = 5.0
MAX_CONCURRENCY = 256
# The most images that a server has taken: two batches of eight wait before its networks while one is computed.
_FULL_QUEUE = 24
# Connecting is not tried again until the deadline, because a wrong address is to be told at once.
_CONNECTING = Retry(attempts=4)
# So long one of several servers may be there without its segmenters, before it has stopped.
_STOPPING_S = 15.0
_STOPPING = Retry(first=0.1, longest=0.5)
_CLOSING_S = 2.0
# Publishing takes names of up to 64 letters.
_LONGEST_NAME = 256
_ALIGNMENT = 64
# Whether the parts' score maps are asked for: True for SCORES, "sharpened" for those that the mask is the argmax of.
Scores: TypeAlias = bool | Literal["sharpened"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """What became of one of many images.

    Attributes:
        image: the image as it was given.
        error: why there is no mask, or None.
    """

    image: ImageLike
    error: SegmenterError | None
    _mask: Mask | None

    @property
    def mask(self) -> Mask:
        """The mask.

        Raises:
            SegmenterError: `error`, where there is one.
        """
        if self._mask is None:
            raise self.error or AssertionError("an answer has a mask or an error")
        return self._mask

    @classmethod
    def of(cls, image: ImageLike, done: "Future[Mask] | asyncio.Task[Mask]") -> "Answer":
        """Return what became of `image`, from the future or task that has ended."""
        try:
            return cls(image=image, error=None, _mask=done.result())
        except SegmenterError as error:
            return cls(image=image, error=error, _mask=None)


class SegmenterCore:
    """One segmenter on one Triton server, over gRPC.

    Args:
        url: host:port of the server's gRPC endpoint, such as "localhost:8001". Requests are spread over all addresses
            that the name has, and over those of "ipv4:HOST:PORT,HOST:PORT".
        name: the segmenter's name; either form is found.
        timeout: seconds that connecting, and each `segment`, may take unless told otherwise, tries and pauses included;
            None for 30, and for `segment` what its property says.
        access: TLS, certificates and the server's key; without it, plain text.
        retry: how often an unavailable server is asked again; by default until the deadline, and when connecting four
            times.
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
        timeout: float | None = None,
        access: Access | None = None,
        retry: Retry | None = None,
        shared_memory: bool = True,
        compress: bool = False,
    ) -> None:
        self._server, self._connector = _server(url, retry or Retry()), _server(url, retry or _CONNECTING)
        self._name = _checked_name(name)
        self._timeout = None if timeout is None else Deadline(timeout).seconds
        self._access = access or Access()
        self._encode: Callable[[ImageLike], EncodedImage] = partial(encode, compress=compress)
        self._regions = Regions(url, allowed=shared_memory and is_this_machine(url))
        self._closed = False
        self._description: Description | None = None
        self._by_version: dict[str, Description] = {}
        self._begin()

    def _begin(self) -> None:
        """Do what a transport does at once."""

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
        """What the server says of the segmenter, its form included, in the newest version that answered."""
        if self._description is None:
            raise self._unconnected()
        return self._description

    @property
    def timeout(self) -> float:
        """The seconds that a `segment` may take: as given, or 30, or what the images of a full queue take here."""
        return self._timeout or max(DEFAULT_TIMEOUT_S, _FULL_QUEUE * (self.description.image_seconds or 0.0))

    @property
    def concurrency(self) -> int:
        """How many of many images are in flight unless told otherwise: about eight seconds' worth, 2 to 8."""
        return max(2, int(DEFAULT_CONCURRENCY / max(1.0, self.description.image_seconds or 0.0)))

    def __repr__(self) -> str:
        parts = self._description and self._description.parts
        return f"Segmenter({self._server.url!r}, {self._name!r}, parts={parts!r})"

    def _connecting(self) -> Steps[None]:
        deadline = Deadline(self._timeout or DEFAULT_TIMEOUT_S)
        self._description = yield from lookup.find(self._connector, self._name, deadline)

    def _segmenting(self, image: ImageLike, *, scores: Scores, timeout: float | None) -> Steps[Mask]:
        """Encode the image, ask for its mask, and ask again where the segmenter was replaced in between."""
        if self._closed:
            raise self._shut()
        deadline = Deadline(self.timeout if timeout is None else timeout)
        encoded: EncodedImage = yield Work(partial(self._encode, image))
        given_up = Deadline(min(_STOPPING_S, deadline.left()))
        for attempt in itertools.count(1):
            try:
                if attempt % 2 == 0:
                    self._description = yield from lookup.find(self._server, self._name, deadline)
                return (yield from self._masking(encoded, scores, deadline))
            except SegmenterError as error:
                if error.code != NOT_FOUND:
                    raise
                # The version that answered was replaced in between, or the segmenter's form: its successor is asked.
                # Or one of several servers is about to stop: sooner or later another one is asked.
                pause = _STOPPING.pause(attempt)
                if attempt > 1 and (
                    pause >= given_up.left() or not (yield Work(partial(is_several, self._server.url)))
                ):
                    raise
            if attempt > 1:
                yield Pause(pause)
        raise AssertionError("counting has no end")

    def _masking(self, image: EncodedImage, scores: Scores, deadline: Deadline) -> Steps[Mask]:
        """Ask for the mask of an encoded image; its parts are those of the version that answered."""
        asked = self.description
        try:
            answer, shared_memory = yield from self._asking(asked, image, scores, deadline)
        except SegmenterError as error:
            if scores != "sharpened" or error.code != INVALID_ARGUMENT or protocol.SHARPENED not in str(error):
                raise
            message = f"segmenter {self._name!r}: was published before it gave the scores that smoothing a video needs"
            raise SegmenterError(
                f"{message}; run slime repository upgrade, or smooth nothing", FAILED_PRECONDITION
            ) from error
        mask_HW = protocol.output(answer, protocol.MASK, np.uint8, 2, shared_memory)
        scores_Khw = protocol.output(answer, name, np.float32, 3) if (name := _scores_name(scores)) else None
        # Somebody may publish the segmenter again, with other parts, while this object lives.
        if asked.form == SHARED:
            said = protocol.text(answer, protocol.DESCRIPTION)
            current = lookup.from_registry(said, url=self._server.url, segmenter=self._name)
            if current.model != asked.model:
                raise SegmenterError(f"segmenter {self._name!r}: moved to another model", NOT_FOUND)
            self._description = replace(current, image_seconds=asked.image_seconds or current.image_seconds)
        elif (version := answer.model_version) in self._by_version:
            current = self._by_version[version]
        else:
            current = yield from lookup.baked(self._server, self._name, version, deadline)
            self._by_version[version] = self._description = current
        try:
            return Mask(array=mask_HW, parts=current.parts, colours=current.colours, scores=scores_Khw, source=image)
        except SegmenterError as error:
            message = f"{image.label}: the server's {error}; publish the segmenter again"
            raise SegmenterError(message, INTERNAL) from error

    def _asking(
        self, asked: Description, image: EncodedImage, scores: Scores, deadline: Deadline
    ) -> Steps[tuple[Any, bytes]]:
        """Send the image; return the answer, and the bytes of its mask where it came through shared memory."""
        region = yield from self._regions.lend(_mask_offset(image) + image.pixels, deadline)
        if region is not None:
            try:
                request = _request(asked, image, scores, region)
                answer = yield from self._inference(request, image, deadline)
            except BaseException as error:
                self._regions.retire(region)
                if not isinstance(error, SegmenterError) or region.name not in str(error):
                    raise
                # The server was started again and no longer knows our memory: everything is sent from now on.
                self._regions.forbid()
            else:
                start = _mask_offset(image)
                content = region.memory[start : start + image.pixels]
                self._regions.give_back(region)
                return answer, content
        return (yield from self._inference(_request(asked, image, scores, None), image, deadline)), b""

    def _inference(self, request: Any, image: EncodedImage, deadline: Deadline) -> Steps[Any]:
        return self._server.ask("ModelInfer", request, deadline, segmenter=self._name, subject=image.label)

    def _asking_live(self, timeout: float) -> Steps[bool]:
        once, request = Asker(url=self._server.url, retry=Retry(attempts=1)), service_pb2.ServerLiveRequest()
        try:
            answer = yield from once.ask("ServerLive", request, Deadline(timeout), segmenter="*", subject="it")
        except SegmenterError:
            return False
        return bool(answer.live)

    def _closing(self) -> Steps[None]:
        yield from self._regions.close(Deadline(_CLOSING_S))

    @staticmethod
    def checked_concurrency(number: int) -> int:
        """Return the number of images in flight. Raises SegmenterError (INVALID_ARGUMENT) unless it is 1 to 256."""
        if not isinstance(number, int) or not 1 <= number <= MAX_CONCURRENCY:
            raise SegmenterError(f"concurrency: got {number!r}, expected 1 to {MAX_CONCURRENCY}", INVALID_ARGUMENT)
        return number

    def _shut(self) -> SegmenterError:
        return self._unusable("closed; make a new Segmenter")

    def _unconnected(self) -> SegmenterError:
        return self._unusable("not connected yet; enter it with `async with`")

    def _unusable(self, why: str) -> SegmenterError:
        return SegmenterError(f"segmenter {self._name!r}: {why}", FAILED_PRECONDITION)


def listing(url: str, timeout: float, retry: Retry | None) -> Steps[list[Description]]:
    """Return the steps of `segmenters`. Raises SegmenterError at once for what cannot be an address."""
    return lookup.every(_server(url, retry or _CONNECTING), Deadline(timeout))


def _request(segmenter: Description, image: EncodedImage, scores: Scores, region: Region | None) -> Any:
    """Build the request for one image, which lies in `region` with room for its mask behind it, or is sent itself."""
    shared = segmenter.form == SHARED
    inputs = {protocol.IMAGE: None if region else image.data}
    inputs |= {protocol.SEGMENTER: segmenter.name.encode()} if shared else {}
    outputs = list(filter(None, (protocol.MASK, _scores_name(scores), protocol.DESCRIPTION if shared else "")))
    request = protocol.infer(segmenter.model, inputs, outputs)
    if region:
        element = protocol.element(image.data)
        region.memory[: len(element)] = element
        region.point(request.inputs[0], 0, len(element))
        if image.pixels:  # Otherwise the mask's size is not known before it comes, and it is sent.
            region.point(request.outputs[0], _mask_offset(image), image.pixels)
    return request


def _scores_name(scores: Scores) -> str:
    """Return the name of the output with the scores that are asked for, "" for none."""
    return {True: protocol.SCORES, False: "", "sharpened": protocol.SHARPENED}[scores]


def _mask_offset(image: EncodedImage) -> int:
    """Return where an image's mask begins in shared memory: after the image, aligned."""
    return -(-(len(image.data) + 4) // _ALIGNMENT) * _ALIGNMENT


def _server(url: str, retry: Retry) -> Asker:
    """Return who asks the server at `url`. Raises SegmenterError unless that is host:port."""
    if not isinstance(url, str) or not url.strip() or "://" in url:
        raise SegmenterError(
            f"url: got {url!r}, expected host:port without a scheme, such as localhost:8001", INVALID_ARGUMENT
        )
    return Asker(url=url, retry=retry)


def _checked_name(name: str) -> str:
    if not isinstance(name, str) or not name or len(name) > _LONGEST_NAME or not name.isascii():
        got = repr(name)[:_LONGEST_NAME]
        raise SegmenterError(f"segmenter: got {got}, expected the name it was published under", INVALID_ARGUMENT)
    return name
