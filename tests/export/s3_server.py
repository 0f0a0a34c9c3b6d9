"""An S3 server on this machine (moto's), with what goes wrong between it and its clients."""

from __future__ import annotations

import io
import logging
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

CODES = {403: "AccessDenied", 503: "ServiceUnavailable"}
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "a-secret-of-nobody",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class S3Server:
    """Serves until `close`. Before each request `fault(method, path)` says what is to happen to it:

    None: nothing. A status: it is refused. "cut": the connection breaks in the middle of the content. "lose": it breaks
    before the answer. "hold": the answer waits for `release`; `held` is set when the request is there.
    """

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.reset()
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def reset(self) -> None:
        """Forget what was asked, and let nothing go wrong."""
        self.requests: list[tuple[str, str]] = []
        self.fault: Callable[[str, str], str | int | None] = lambda method, path: None
        self.held, self.release = threading.Event(), threading.Event()

    def count(self, method: str, part: str) -> int:
        """Return how many requests of this method had `part` in their path."""
        return sum(each == method and part in path for each, path in self.requests)

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append((method, path))
        fault = self.fault(method, path)
        if isinstance(fault, int):
            start_response(f"{fault} Refused", [("Content-Type", "application/xml")])
            return [f"<Error><Code>{CODES[fault]}</Code><Message>this store refuses</Message></Error>".encode()]
        if fault == "hold":
            self.held.set()
            assert self.release.wait(120)
        size = int(environ.get("CONTENT_LENGTH") or 0)
        if fault == "cut" and size:
            environ["wsgi.input"].read(size // 2)
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            environ["wsgi.input"] = io.BytesIO()
            start_response("400 Cut", [])
            return []
        if fault == "lose":
            list(self._moto(environ, lambda *_: None))
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        answer = self._moto(environ, start_response)
        return self._half(b"".join(answer), environ["werkzeug.socket"]) if fault == "cut" else answer

    def _half(self, content: bytes, connection: socket.socket) -> Iterable[bytes]:
        yield content[: len(content) // 2]
        connection.shutdown(socket.SHUT_RDWR)
