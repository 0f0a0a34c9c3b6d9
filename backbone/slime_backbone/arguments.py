"""Numbers on the command lines of the backbone's scripts."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable
from typing import TypeVar

Number = TypeVar("Number", int, float)


def number(parse: Callable[[str], Number], is_good: Callable[[Number], bool], expected: str) -> Callable[[str], Number]:
    """Return an option's type: what `parse` makes of the text, refused with what was `expected` unless it `is_good`."""

    def checked(text: str) -> Number:
        try:
            if is_good(value := parse(text)):
                return value
        except ValueError:
            pass
        raise ArgumentTypeError(f"got {text}, expected {expected}")

    return checked


positive = number(int, lambda value: value >= 1, "a whole number of at least 1")
