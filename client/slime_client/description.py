"""What a served segmenter says of itself: its parts and their colours, and which model answers for it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slime_client import names
from slime_client.errors import INTERNAL, NOT_FOUND, SegmenterError
from slime_client.mask import Colour

_LONGEST_REASON = 200


@dataclass(frozen=True, kw_only=True)
class Description:
    """A segmenter.

    Attributes:
        name: what it was published as.
        parts: names, background first; one mask value each, so at most 256.
        colours: (r, g, b) for each part, each 0..255.
        model: the model to ask; in shared form many segmenters have one.
        form: "baked" or "shared".
        about: everything else it says, by name: backbone, image_size, created, …
    """

    name: str
    parts: tuple[str, ...]
    colours: tuple[Colour, ...]
    model: str
    form: str = names.BAKED
    about: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not 1 <= len(self.parts) <= 256 or not all(isinstance(part, str) for part in self.parts):
            raise ValueError(f"parts are {self.parts!r}")
        if len(self.colours) != len(self.parts) or not all(map(_is_colour, self.colours)):
            raise ValueError(f"{len(self.parts)} parts have colours {self.colours!r}")
        if self.form not in (names.BAKED, names.SHARED) or not isinstance(self.model, str):
            raise ValueError(f"its form is {self.form!r}, its model {self.model!r}")


def from_parameters(parameters: Mapping[str, str], *, url: str, segmenter: str) -> Description:
    """Read a model configuration's parameters.

    Raises:
        SegmenterError: NOT_FOUND when the model is no segmenter; INTERNAL when what it says makes no sense.
    """
    if names.PARTS not in parameters or parameters.get(names.FORM) == names.SHARED:
        raise SegmenterError(f"{url}: model {segmenter!r} is no segmenter: it names no parts", NOT_FOUND)
    try:
        said = dict(parameters)
        said[names.PARTS] = json.loads(parameters[names.PARTS])
        said[names.COLOURS] = json.loads(parameters.get(names.COLOURS, "[]"))
        return _described(said, segmenter, model=segmenter)
    except (ValueError, TypeError) as error:
        raise _nonsense(url, segmenter, error) from error


def from_registry(said: str, *, url: str, segmenter: str) -> Description:
    """Read what the model `segmenters` says of one segmenter: a JSON object.

    Raises:
        SegmenterError: INTERNAL when what it says makes no sense.
    """
    try:
        entry = json.loads(said)
        return _described({**entry, names.FORM: names.SHARED}, segmenter, model=entry[names.MODEL])
    except (ValueError, TypeError, KeyError) as error:
        raise _nonsense(url, segmenter, error) from error


def names_from_registry(said: str, *, url: str) -> list[str]:
    """Read what the model `segmenters` says of all: a JSON list of names.

    Raises:
        SegmenterError: INTERNAL when what it says makes no sense.
    """
    try:
        found = json.loads(said)
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise ValueError(f"its list is {said[:80]}")
        return found
    except ValueError as error:
        raise _nonsense(url, names.SEGMENTERS, error) from error


def _described(said: Mapping[str, Any], segmenter: str, *, model: str) -> Description:
    if not isinstance(said[names.PARTS], list):
        raise ValueError(f"parts are {said[names.PARTS]!r}")
    known = ("name", names.PARTS, names.COLOURS, names.FORM, names.MODEL)
    return Description(
        name=segmenter,
        parts=tuple(said[names.PARTS]),
        colours=tuple(tuple(colour) for colour in said[names.COLOURS]),
        model=model,
        form=said.get(names.FORM, names.BAKED),
        about={key: value for key, value in said.items() if key not in known},
    )


def _nonsense(url: str, segmenter: str, error: Exception) -> SegmenterError:
    reason = str(error)[:_LONGEST_REASON]
    message = f"{url}: segmenter {segmenter!r} describes itself wrongly ({reason}); publish it again"
    return SegmenterError(message, INTERNAL)


def _is_colour(colour: tuple[object, ...]) -> bool:
    return len(colour) == 3 and all(isinstance(value, int) and 0 <= value <= 255 for value in colour)
