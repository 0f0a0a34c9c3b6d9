"""Reads requests: bodies within bounds, and values of the type that is expected, else a StudioError of one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from starlette.requests import Request

from slime_studio.errors import StudioError

_JSON_BYTES = 1_000_000


async def body(request: Request, most: int, subject: str) -> bytes:
    """Return the request's body. Raises StudioError (413) as soon as it is longer than `most` bytes."""
    told = request.headers.get("content-length", "")
    pieces: list[bytes] = []
    size = int(told) if told.isdecimal() else 0
    if size <= most:
        size = 0
        async for piece in request.stream():
            size += len(piece)
            if size > most:
                break
            pieces.append(piece)
    if size > most:
        raise StudioError(f"{subject[:200]}: is over {most / 1e6:.3g} MB, expected at most that; make it smaller", 413)
    return b"".join(pieces)


async def save_body(request: Request, path: Path, most: int, subject: str) -> None:
    """Write the request's body into a file. Raises StudioError (413) as soon as it is longer than `most` bytes."""
    size = 0
    with path.open("wb") as file:
        async for piece in request.stream():
            if (size := size + len(piece)) > most:
                raise StudioError(f"{subject[:200]}: is over {most / 1e9:.3g} GB, expected at most that", 413)
            file.write(piece)


async def json_body(request: Request) -> dict[str, Any]:
    """Return the JSON object in a request's body. Raises StudioError for anything else."""
    return json_object(await body(request, _JSON_BYTES, "request"))


def json_object(data: bytes) -> dict[str, Any]:
    """Return the JSON object in `data`, an empty one for nothing. Raises StudioError for anything else."""
    try:
        found = json.loads(data or b"{}")
    except ValueError as error:
        raise StudioError(f"request: is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise StudioError(f"request: is a {type(found).__name__}, expected a JSON object")
    return found


def tab(request: Request) -> str:
    """Return which tab asks, so that it need not load again what it has just sent."""
    return request.headers.get("x-tab", "")[:40]


def number(value: Any, name: str) -> int:
    """Return a value as a whole number. Raises StudioError, naming it."""
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise StudioError(f"{name}: got {str(value)[:40]!r}, expected a whole number") from error


def text(facts: dict[str, Any], name: str) -> str | None:
    """Return the text under a name, None where there is none. Raises StudioError for another type."""
    value = facts.get(name)
    if value is not None and not isinstance(value, str):
        raise StudioError(f"{name}: got {type(value).__name__}, expected text")
    return value or None


def flag(facts: dict[str, Any], name: str) -> bool:
    """Return what is true or false under a name, false where there is nothing. Raises StudioError for another type."""
    value = facts.get(name, False)
    if not isinstance(value, bool):
        raise StudioError(f"{name}: got {str(value)[:40]!r}, expected true or false")
    return value
