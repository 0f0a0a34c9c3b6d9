"""A served segmenter, as an object. The only module that talks to Triton."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import (
    InferenceServerClient,
    InferInput,
    InferRequestedOutput,
    InferResult,
)
from tritonclient.utils import InferenceServerException

from slime_client import names
from slime_client.description import Description, describe
from slime_client.errors import FAILED_PRECONDITION, INTERNAL, INVALID_ARGUMENT, NOT_FOUND, SegmenterError, from_triton
from slime_client.images import EncodedImage, ImageLike, encode
from slime_client.mask import Colour, Mask

DEFAULT_TIMEOUT_S = 30.0
# Looking for other segmenters only improves a message: it may cost this much and no more.
_LOOK_AROUND_S = 2.0
_LOOK_AROUND_MODELS = 64

Answer = TypeVar("Answer")


class Segmenter(AbstractContextManager["Segmenter", None]):
    """One segmenter on one Triton server, over gRPC.

    Connecting asks the server for the segmenter's parts and colours, so a wrong address or name fails here.

    Args:
        url: host:port of the server's gRPC endpoint, such as "localhost:8001".
        name: the segmenter's name.
        timeout: seconds that connecting, and each `segment`, may take unless told otherwise.

    Raises:
        SegmenterError: for anything that goes wrong; `.code` tells what.
    """

    def __init__(self, url: str, name: str, *, timeout: float = DEFAULT_TIMEOUT_S) -> None:
        self._url = _checked_url(url)
        self._name = _checked_name(name)
        self._timeout = _checked_timeout(timeout)
        self._closed = False
        self._client = InferenceServerClient(self._url)
        self._version = ""
        try:
            self._description = self._describe("", _Deadline(self._timeout))
        except SegmenterError as error:
            hint = f"; {self._others()}" if error.code == NOT_FOUND else ""
            self.close()
            raise SegmenterError(f"{error}{hint}", error.code) from error

    @property
    def name(self) -> str:
        """The segmenter's name."""
        return self._name

    @property
    def parts(self) -> tuple[str, ...]:
        """The part names, background first."""
        return self._description.parts

    @property
    def colours(self) -> tuple[Colour, ...]:
        """One (r, g, b), each 0..255, for each part."""
        return self._description.colours

    def segment(self, image: ImageLike, *, scores: bool = False, timeout: float | None = None) -> Mask:
        """Ask for one image's mask.

        Args:
            image: a path or bytes (JPEG, PNG, WebP, sent as they are), a uint8 RGB array (H, W, 3) or a PIL image.
            scores: ask for the parts' score maps too.
            timeout: seconds for the whole call, instead of the segmenter's.

        Returns:
            A mask of the image's size as seen (EXIF orientation applied, for a PIL image too).

        Raises:
            SegmenterError: INVALID_ARGUMENT for a bad image, UNAVAILABLE, DEADLINE_EXCEEDED, NOT_FOUND, …
        """
        deadline = _Deadline(self._timeout if timeout is None else _checked_timeout(timeout))
        encoded = encode(image)
        result = self._infer(encoded, scores, deadline)
        try:
            self._follow(result, deadline)
        except SegmenterError as error:
            if error.code != NOT_FOUND:
                raise
            # The version that answered was replaced in between; its successor is asked instead.
            result = self._infer(encoded, scores, deadline)
            self._follow(result, deadline)
        return _mask(result, self._description, encoded, scores)

    def live(self, *, timeout: float = 5.0) -> bool:
        """Whether the server answers at all; never raises for a server that does not."""
        try:
            return bool(self._client.is_server_live(client_timeout=_checked_timeout(timeout)))
        except (InferenceServerException, ValueError):
            return False

    def close(self) -> None:
        """Close the connection; a second time does nothing."""
        if not self._closed:
            self._closed = True
            self._client.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Segmenter({self._url!r}, {self._name!r}, parts={self.parts!r})"

    def _infer(self, image: EncodedImage, scores: bool, deadline: "_Deadline") -> InferResult:
        tensor = InferInput(names.IMAGE, [1], "BYTES")
        tensor.set_data_from_numpy(np.array([image.data], dtype=np.object_))
        wanted = [names.MASK, names.SCORES] if scores else [names.MASK]
        outputs = [InferRequestedOutput(name) for name in wanted]
        return self._ask(
            lambda left: self._client.infer(self._name, [tensor], outputs=outputs, client_timeout=left),
            deadline,
            subject=image.label,
        )

    def _follow(self, result: InferResult, deadline: "_Deadline") -> None:
        # Somebody may publish the segmenter anew, with other parts, while this object lives.
        version = result.get_response().model_version
        if version != self._version:
            self._description = self._describe(version, deadline)
            self._version = version

    def _describe(self, version: str, deadline: "_Deadline") -> Description:
        answer = self._ask(
            lambda left: self._client.get_model_config(self._name, version, client_timeout=left),
            deadline,
            subject="its configuration",
        )
        return describe(_parameters(answer), url=self._url, segmenter=self._name)

    def _ask(self, call: Callable[[float], Answer], deadline: "_Deadline", *, subject: str) -> Answer:
        if self._closed:
            raise SegmenterError(f"segmenter {self._name!r}: closed; make a new Segmenter", FAILED_PRECONDITION)
        try:
            return call(deadline.left())
        except InferenceServerException as error:
            raise from_triton(
                error, url=self._url, segmenter=self._name, subject=subject, timeout=deadline.seconds
            ) from error

    def _others(self) -> str:
        deadline = _Deadline(_LOOK_AROUND_S)
        try:
            index = self._client.get_model_repository_index(client_timeout=deadline.left())
            ready = [model.name for model in index.models if model.state == "READY"][:_LOOK_AROUND_MODELS]
            found = sorted({name for name in ready if self._is_segmenter(name, deadline)})
        except InferenceServerException:
            # The index may be closed to clients; the message does without.
            return "check the name"
        return f"it serves: {', '.join(found)}" if found else "it serves no segmenter"

    def _is_segmenter(self, name: str, deadline: "_Deadline") -> bool:
        return names.PARTS in _parameters(self._client.get_model_config(name, client_timeout=deadline.left()))


class _Deadline:
    """A point in time, so that several calls share one allowance."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds until then; a moment at least, so that gRPC itself says that time is up."""
        return max(self._end - time.monotonic(), 1e-3)


def _parameters(answer: Any) -> dict[str, str]:
    return {key: value.string_value for key, value in answer.config.parameters.items()}


def _mask(result: InferResult, description: Description, source: EncodedImage, scores: bool) -> Mask:
    array = _output(result, names.MASK, np.uint8, 2)
    maps = _output(result, names.SCORES, np.float32, 3) if scores else None
    parts, colours = description.parts, description.colours
    try:
        return Mask(array=array, parts=parts, colours=colours, scores=maps, source=source)
    except SegmenterError as error:
        raise SegmenterError(f"{source.label}: the server's {error}; publish the segmenter again", INTERNAL) from error


def _output(result: InferResult, name: str, dtype: type[np.generic], dimensions: int) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] | None = result.as_numpy(name)
    if array is None or array.dtype != dtype or array.ndim != dimensions:
        got = "nothing" if array is None else f"{array.dtype} {array.shape}"
        expected = f"{dtype.__name__} with {dimensions} dimensions"
        raise SegmenterError(
            f"{name}: got {got} from the server, expected {expected}; is it a segmenter of this project?", INTERNAL
        )
    # A copy, because gRPC's own bytes cannot be written to.
    return np.array(array)


def _checked_url(url: str) -> str:
    if not isinstance(url, str) or not url.strip() or "://" in url:
        raise SegmenterError(
            f"url: got {url!r}, expected host:port without a scheme, such as localhost:8001", INVALID_ARGUMENT
        )
    return url


def _checked_name(name: str) -> str:
    if not isinstance(name, str) or not name:
        raise SegmenterError(f"segmenter: got {name!r}, expected the name it was published under", INVALID_ARGUMENT)
    return name


def _checked_timeout(seconds: float) -> float:
    if not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:
        raise SegmenterError(f"timeout: got {seconds!r}, expected a positive number of seconds", INVALID_ARGUMENT)
    return float(seconds)
