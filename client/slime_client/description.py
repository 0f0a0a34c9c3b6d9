"""What a served segmenter says of itself: its parts and their colours, from its configuration's parameters."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from slime_client import names
from slime_client.errors import INTERNAL, NOT_FOUND, SegmenterError
from slime_client.mask import Colour


@dataclass(frozen=True, kw_only=True)
class Description:
    """A segmenter's parts.

    Attributes:
        parts: names, background first; one mask value each, so at most 256.
        colours: (r, g, b) for each part, each 0..255.
    """

    parts: tuple[str, ...]
    colours: tuple[Colour, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.parts) <= 256 or not all(isinstance(part, str) for part in self.parts):
            raise ValueError(f"parts are {self.parts!r}")
        if len(self.colours) != len(self.parts) or not all(map(_is_colour, self.colours)):
            raise ValueError(f"{len(self.parts)} parts have colours {self.colours!r}")


def describe(parameters: Mapping[str, str], *, url: str, segmenter: str) -> Description:
    """Read a model configuration's parameters.

    Raises:
        SegmenterError: NOT_FOUND when the model is no segmenter; INTERNAL when what it says makes no sense.
    """
    if names.PARTS not in parameters:
        raise SegmenterError(f"{url}: model {segmenter!r} is no segmenter: it names no parts", NOT_FOUND)
    try:
        parts = json.loads(parameters[names.PARTS])
        colours = json.loads(parameters.get(names.COLOURS, "[]"))
        return Description(parts=tuple(parts), colours=tuple(tuple(colour) for colour in colours))
    except (ValueError, TypeError) as error:
        message = f"{url}: segmenter {segmenter!r} describes itself wrongly ({error}); publish it again"
        raise SegmenterError(message, INTERNAL) from error


def _is_colour(colour: tuple[object, ...]) -> bool:
    return len(colour) == 3 and all(isinstance(value, int) and 0 <= value <= 255 for value in colour)
