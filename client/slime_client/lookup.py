"""Which segmenters a server has, and what it says of each: its parts, their colours, and the model to ask.

A baked-in segmenter is an ensemble of its own name, whose configuration's parameters name its parts. Segmenters in
shared form share an ensemble: the model `segmenters` describes each by name and says which ensemble answers for it.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tritonclient.grpc import service_pb2

from slime_client import protocol
from slime_client.errors import INTERNAL, NOT_FOUND, SegmenterError
from slime_client.mask import Colour
from slime_client.protocol import (
    BAKED,
    COLOURS,
    FORM,
    IMAGE_SECONDS,
    MODEL,
    PARTS,
    SEGMENTERS,
    SHARED,
    Asker,
    Deadline,
    Steps,
)

_LONGEST_REASON = 200
# Looking for other segmenters only makes a message better: it may take this many seconds, and name this many.
_LOOK_AROUND_S = 2.0
_LOOK_AROUND_NAMES = 64


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a server says of a segmenter.

    Attributes:
        name: the name it was published under.
        parts: names, background first; one mask value each, so at most 256.
        colours: (r, g, b) for each part, each 0..255.
        model: the model to ask; segmenters in shared form have one together.
        form: "baked" or "shared".
        image_seconds: what one image took on this server when it was started, or when the segmenter was published;
            None where the server does not say.
        about: everything else that is said of it, by name: backbone, image_size, created, …
    """

    name: str
    parts: tuple[str, ...]
    colours: tuple[Colour, ...]
    model: str
    form: str = BAKED
    image_seconds: float | None = None
    about: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not 1 <= len(self.parts) <= 256 or not all(isinstance(part, str) for part in self.parts):
            raise ValueError(f"parts are {self.parts!r}")
        if len(self.colours) != len(self.parts) or not all(map(_is_colour, self.colours)):
            raise ValueError(f"{len(self.parts)} parts have colours {self.colours!r}")
        if self.form not in (BAKED, SHARED) or not isinstance(self.model, str):
            raise ValueError(f"its form is {self.form!r}, its model {self.model!r}")


def find(server: Asker, name: str, deadline: Deadline) -> Steps[Description]:
    """Return the description of the latest version of a segmenter, in whichever form it is served.

    Raises:
        SegmenterError: NOT_FOUND when it is served in neither form, naming those that are; or what else went wrong.
    """
    try:
        return (yield from baked(server, name, "", deadline))
    except SegmenterError as error:
        if error.code != NOT_FOUND:
            raise
        missing = error
    try:
        return (yield from _timed(server, (yield from _shared(server, name, deadline)), deadline))
    except SegmenterError as error:
        if error.code != NOT_FOUND:
            raise
    try:
        found, registered = yield from _served(server, Deadline(_LOOK_AROUND_S))
        shown = sorted({description.name for description in found} | set(registered))[:_LOOK_AROUND_NAMES]
        hint = f"it serves: {', '.join(shown)}" if shown else "it serves no segmenter"
    except SegmenterError:
        # The list of models may be closed to clients without a key.
        hint = "check the name"
    raise SegmenterError(f"{missing}; {hint}", NOT_FOUND) from missing


def every(server: Asker, deadline: Deadline) -> Steps[list[Description]]:
    """Return all segmenters that can be asked, of either form, by name.

    Raises:
        SegmenterError: UNAUTHENTICATED when the server lists its models only for those who have its key.
    """
    found, registered = yield from _served(server, deadline)
    for name in registered:
        found += yield from _unless_gone(_shared(server, name, deadline))
    return sorted(found, key=lambda description: description.name)


def baked(server: Asker, name: str, version: str, deadline: Deadline) -> Steps[Description]:
    """Return the description of one version of a baked-in segmenter; "" is the latest.

    Raises:
        SegmenterError: NOT_FOUND when the model is not there or no segmenter; INTERNAL for a senseless description.
    """
    request = service_pb2.ModelConfigRequest(name=name, version=version)
    answer = yield from server.ask("ModelConfig", request, deadline, segmenter=name, subject="its configuration")
    said: dict[str, Any] = {key: value.string_value for key, value in answer.config.parameters.items()}
    if PARTS not in said or said.get(FORM) == SHARED:
        raise SegmenterError(f"{server.url}: model {name!r} is no segmenter: it names no parts", NOT_FOUND)
    try:
        said |= {PARTS: json.loads(said[PARTS]), COLOURS: json.loads(said.get(COLOURS, "[]"))}
        return _described(said, name, model=name)
    except (ValueError, TypeError) as error:
        raise _nonsense(server.url, name, error) from error


def from_registry(said: str, *, url: str, segmenter: str) -> Description:
    """Read the JSON object that the model `segmenters` describes one segmenter with.

    Raises:
        SegmenterError: INTERNAL for a senseless description.
    """
    try:
        entry = json.loads(said)
        return _described({**entry, FORM: SHARED}, segmenter, model=entry[MODEL])
    except (ValueError, TypeError, KeyError) as error:
        raise _nonsense(url, segmenter, error) from error


def _shared(server: Asker, name: str, deadline: Deadline) -> Steps[Description]:
    said = yield from _registry(server, name, deadline)
    return from_registry(said, url=server.url, segmenter=name)


def _timed(server: Asker, shared: Description, deadline: Deadline) -> Steps[Description]:
    """Return the description with the time that the configuration of its ensemble says an image takes, if it does."""
    request = service_pb2.ModelConfigRequest(name=shared.model)
    try:
        answer = yield from server.ask("ModelConfig", request, deadline, segmenter=shared.name, subject="its time")
    except SegmenterError as error:
        if error.code != NOT_FOUND:
            raise
        return shared
    seconds = _seconds(answer.config.parameters[IMAGE_SECONDS].string_value)
    return replace(shared, image_seconds=seconds) if seconds else shared


def _served(server: Asker, deadline: Deadline) -> Steps[tuple[list[Description], list[str]]]:
    """Return the baked-in segmenters, and the names of those in shared form."""
    request = service_pb2.RepositoryIndexRequest()
    index = yield from server.ask("RepositoryIndex", request, deadline, segmenter="*", subject="the list of models")
    ready = {model.name for model in index.models if model.state == "READY"}
    found: list[Description] = []
    for name in sorted(ready):
        # Most models are no segmenters.
        found += yield from _unless_gone(baked(server, name, "", deadline))
    if SEGMENTERS not in ready:
        return found, []
    said = yield from _registry(server, "", deadline)
    try:
        registered = json.loads(said)
        if not isinstance(registered, list) or not all(isinstance(name, str) for name in registered):
            raise ValueError(f"its list is {said[:80]}")
    except ValueError as error:
        raise _nonsense(server.url, SEGMENTERS, error) from error
    return found, registered


def _registry(server: Asker, name: str, deadline: Deadline) -> Steps[str]:
    """Return the JSON text that the model `segmenters` says of one segmenter, or of all for an empty name."""
    request = protocol.infer(SEGMENTERS, {protocol.SEGMENTER: name.encode()}, [protocol.DESCRIPTION])
    answer = yield from server.ask("ModelInfer", request, deadline, segmenter=name, subject="its description")
    return protocol.text(answer, protocol.DESCRIPTION)


def _unless_gone(steps: Steps[Description]) -> Steps[list[Description]]:
    try:
        return [(yield from steps)]
    except SegmenterError as error:
        if error.code != NOT_FOUND:
            raise
        return []


def _described(said: Mapping[str, Any], segmenter: str, *, model: str) -> Description:
    if not isinstance(said[PARTS], list):
        raise ValueError(f"parts are {said[PARTS]!r}")
    return Description(
        name=segmenter,
        parts=tuple(said[PARTS]),
        colours=tuple(tuple(colour) for colour in said[COLOURS]),
        model=model,
        form=said.get(FORM, BAKED),
        image_seconds=_seconds(said.get(IMAGE_SECONDS)),
        about={key: value for key, value in said.items() if key not in ("name", PARTS, COLOURS, FORM, MODEL)},
    )


def _seconds(said: Any) -> float | None:
    try:
        seconds = float(said)
    except (ValueError, TypeError):
        return None
    return seconds if 0 < seconds < math.inf else None


def _nonsense(url: str, segmenter: str, error: Exception) -> SegmenterError:
    reason = str(error)[:_LONGEST_REASON]
    message = f"{url}: segmenter {segmenter!r} describes itself wrongly ({reason}); publish it again"
    return SegmenterError(message, INTERNAL)


def _is_colour(colour: tuple[object, ...]) -> bool:
    return len(colour) == 3 and all(isinstance(value, int) and 0 <= value <= 255 for value in colour)
