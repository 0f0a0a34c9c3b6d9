"""Server-sent events: tells every open page what has changed, so that it asks for that again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import StreamingResponse

_BEAT_SECONDS = 15.0
_WAITING = 1000  # events that a page which reads none may have waiting


class Events:
    """The open pages. `tell` may be called from any thread."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pages: set[asyncio.Queue[str | None]] = set()

    def tell(self, what: str, **facts: Any) -> None:
        """Send an event of the kind `what` to every page."""
        text = f"event: {what}\ndata: {json.dumps(facts)}\n\n"
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._send, text)

    def close(self) -> None:
        """End all streams, so that the studio can end."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._send, None)

    def stream(self) -> StreamingResponse:
        """Return the answer to a page that listens; called in the event loop."""
        self._loop = asyncio.get_running_loop()
        queue: asyncio.Queue[str | None] = asyncio.Queue(_WAITING)
        self._pages.add(queue)
        return StreamingResponse(self._events(queue), media_type="text/event-stream")

    async def _events(self, queue: asyncio.Queue[str | None]) -> AsyncIterator[str]:
        try:
            yield "retry: 1000\n\n"
            while True:
                try:
                    text = await asyncio.wait_for(queue.get(), _BEAT_SECONDS)
                except asyncio.TimeoutError:
                    text = ": beat\n\n"
                if text is None:
                    return
                yield text
        finally:
            self._pages.discard(queue)

    def _send(self, text: str | None) -> None:
        for queue in tuple(self._pages):
            if queue.full():
                self._pages.discard(queue)  # its stream ends, and it asks for everything when it connects again
                queue.get_nowait()
                queue.put_nowait(None)
            else:
                queue.put_nowait(text)
