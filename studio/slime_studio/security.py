"""Who may talk to the studio: those who have its token, from its own page.

As with Jupyter, the address that `slime studio` prints carries the token; opening it sets a cookie. Programs send the
header `Authorization: token TOKEN`. What comes from another site's page is refused, whatever it carries: by the Origin
that browsers send along, and by the Host that they were told to ask.
"""

from __future__ import annotations

import hmac
import os
import secrets
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LENGTH = 48  # characters of a token
_SAFE = ("GET", "HEAD")
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def project_token(folder: Path, name: str = ".token") -> str:
    """Return a token of the project's, made once, readable by its owner alone: an open page outlives a restart."""
    path = folder / name
    token = path.read_text(encoding="ascii").strip() if path.exists() else ""
    if len(token) < _LENGTH:
        token = secrets.token_hex(_LENGTH // 2)
        waiting = path.with_name(f"{name}.partial")
        waiting.unlink(missing_ok=True)
        waiting.touch(mode=0o600)
        waiting.write_text(token, encoding="ascii")
        os.replace(waiting, path)
    return token


class Guard:
    """ASGI middleware that answers 403 to what may not ask; `hosts` are the names it answers to, None for any.

    What lies below the path `apart` asks for a secret of its own (label_studio/protocol.py).
    """

    def __init__(
        self, app: ASGIApp, token: str, port: int, hosts: frozenset[str] | None, apart: str | None = None
    ) -> None:
        self._app, self._token, self._hosts, self._apart = app, token, hosts, apart
        self._cookie = f"slime-studio-{port}"  # cookies do not tell ports apart

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    *((name.lower().encode(), value.encode()) for name, value in _HEADERS.items()),
                ]
            await send(message)

        answer = self._refusal(scope)
        await (answer or self._app)(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        if self._apart is not None and scope["path"].startswith(f"{self._apart}/"):
            return None
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._hosts is not None and host not in self._hosts:
            return _refused(f"host: got {host[:80]!r}, expected one of {', '.join(sorted(self._hosts))}")
        if origin is not None and urlsplit(origin).netloc != host:
            return _refused(f"origin: got {origin[:80]!r}, expected this page's own, {host}")
        query = parse_qs(scope["query_string"].decode("latin-1"))
        if scope["path"] == "/" and "token" in query:
            if not self._is_token(query["token"][0]):
                return _refused("token: is another; open the address that slime studio printed")
            welcome = RedirectResponse("/", 303)
            welcome.set_cookie(self._cookie, self._token, httponly=True, samesite="strict", max_age=365 * 86400)
            return welcome
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() in ("token", "bearer"):
            return None if self._is_token(given) else _refused("token: is another; see what slime studio printed")
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self._cookie)
        except CookieError:
            found = None
        if found is None or not self._is_token(found.value):
            return _refused("token: is missing; open the address that slime studio printed, which carries it")
        # A browser sends the Origin along with whatever changes something; what has the cookie and none is no page.
        if scope["method"] not in _SAFE and origin is None:
            return _refused("origin: is missing, expected this page's own")
        if headers.get("sec-fetch-site") == "cross-site" and scope["path"] != "/":
            return _refused("origin: got another site's page, expected this page's own")
        return None

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())


def _refused(line: str) -> Response:
    return JSONResponse({"error": line}, 403)
