"""What is asked of Label Studio: its projects, their annotations, and the tasks' images.

The key is a personal access token, which is exchanged for one that holds some minutes, or a legacy token. Only Label
Studio itself is asked, whatever addresses tasks have, and no redirect is followed.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx2

from slime_image import MAX_BYTES
from slime_studio.errors import StudioError

_SECONDS = 60.0  # that an answer may take in all
_SILENT_SECONDS = 20.0  # that Label Studio may be silent
_JSON_BYTES = 256_000_000  # a project's annotations
_ACCESS_SECONDS = 120.0  # that an access token is used; Label Studio's hold 5 minutes
_NEXT = {
    401: "give another LABEL_STUDIO_API_KEY, made under Account & Settings",
    403: "give the key of somebody who may see the project",
    404: "it is gone there",
}


class LabelStudio:
    """The Label Studio at an address; any number of threads may ask. Raises StudioError for no such address or key.

    `transport` answers in place of the network.
    """

    def __init__(self, url: str, key: str, transport: httpx2.BaseTransport | None = None) -> None:
        self.url = url.rstrip("/")
        words = urlsplit(self.url)
        if words.scheme not in ("http", "https") or not words.netloc or words.query or words.fragment:
            raise StudioError(
                f"--label-studio: got {url[:80]!r}, expected Label Studio's address, such as http://localhost:8080"
            )
        if not key or not key.isascii() or not key.isprintable():
            raise StudioError(
                "--label-studio: the environment has no LABEL_STUDIO_API_KEY; make a token in Label Studio under "
                "Account & Settings, and set it"
            )
        self._origin, self._key = (words.scheme, words.netloc), key
        self._client = httpx2.Client(timeout=_SILENT_SECONDS, follow_redirects=False, transport=transport)
        self._turn = threading.Lock()
        self._access, self._until = "", 0.0

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def json(self, path: str, **query: str) -> Any:
        """Return the JSON that Label Studio answers under a path of its own. Raises StudioError."""
        data = self._read(f"{self.url}{path}", f"label studio: {path}", _JSON_BYTES, params=query)
        try:
            return json.loads(data)
        except ValueError as error:
            raise StudioError(f"label studio: {path} is no JSON; is this Label Studio's address?", 502) from error

    def image(self, address: str) -> bytes:
        """Return a task's image, as it was imported: an address in Label Studio, with or without its host.

        Raises StudioError for an address anywhere else.
        """
        below = address.startswith("/") and not address.startswith(("//", urlsplit(self.url).path + "/"))
        try:
            full = f"{self.url}{address}" if below else urljoin(f"{self.url}/", address)
            inside = urlsplit(full)[:2] == self._origin
        except ValueError:
            inside = False
        if not inside:
            raise StudioError(
                f"image: is at {address[:120]!r}, expected in Label Studio ({self.url}); upload it there, or give the "
                "address that images have with --label-studio"
            )
        return self._read(full, "image", MAX_BYTES)

    def _read(self, url: str, subject: str, most: int, params: dict[str, str] | None = None) -> bytes:
        return self._ask("GET", url, subject, most, params=params, headers={"Authorization": self._authorization()})

    def _ask(self, method: str, url: str, subject: str, most: int, **words: Any) -> bytes:
        """Return an answer's content. Raises StudioError for none, and for one that is too long or takes too long."""
        deadline, data = time.monotonic() + _SECONDS, bytearray()
        try:
            with self._client.stream(method, url, **words) as answer:
                if answer.status_code != 200:
                    what = _NEXT.get(answer.status_code, "see Label Studio's log")
                    moved = answer.headers.get("location", "")
                    where = f" to {moved[:120]}, which is not followed" if moved else ""
                    raise StudioError(f"{subject}: Label Studio answered {answer.status_code}{where}; {what}", 502)
                for piece in answer.iter_bytes():
                    data += piece
                    if len(data) > most:
                        raise StudioError(f"{subject}: is over {most / 1e6:.3g} MB, expected at most that", 413)
                    if time.monotonic() > deadline:
                        raise StudioError(f"{subject}: took over {_SECONDS:.0f} s, expected less; try again", 504)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            told = f"Label Studio at {self.url} does not answer ({str(error) or type(error).__name__})"
            raise StudioError(f"{subject}: {told}; start it", 502) from error
        return bytes(data)

    def _authorization(self) -> str:
        """Return the header for a request: a legacy token as it is, or an access token for a personal one."""
        if self._key.count(".") != 2:  # no JWT
            return f"Token {self._key}"
        with self._turn:
            if time.monotonic() > self._until:
                subject = "LABEL_STUDIO_API_KEY"
                url = f"{self.url}/api/token/refresh/"
                data = self._ask("POST", url, subject, 100_000, json={"refresh": self._key})
                try:
                    self._access = str(json.loads(data)["access"])
                except (ValueError, KeyError, TypeError) as error:
                    raise StudioError(f"{subject}: Label Studio gave no access token for it", 502) from error
                self._until = time.monotonic() + _ACCESS_SECONDS
            return f"Bearer {self._access}"
