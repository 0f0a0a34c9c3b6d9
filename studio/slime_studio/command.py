"""Paint, learn, look, correct and publish on a page in the browser, on this machine.

    slime studio [PROJECT]                   opens http://127.0.0.1:8765/?token=…
    slime studio cars --backbone stable-diffusion-v1-5/stable-diffusion-v1-5 --repository repository

What is painted is in PROJECT as it is painted. Exit codes: 0 it was stopped, 2 something given cannot be used.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import ipaddress
import os
import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.routing import Route

from slime_client.cli import Parser
from slime_studio.app import make_app
from slime_studio.errors import StudioError
from slime_studio.project import Project
from slime_studio.security import project_token
from slime_studio.studio import Studio

_PORT = 8765
_LINGER_SECONDS = 3


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command with the words `argv` (default: the command line's); return its exit code."""
    options = _parser(prog).parse_args(argv)
    try:
        ipaddress.IPv4Address(options.host)
    except ValueError:
        return _failed(f"--host: got {options.host!r}, expected an IPv4 address of this machine, or 0.0.0.0 for all")
    with contextlib.ExitStack() as opened:
        try:
            listening = opened.enter_context(_listen(options.host, options.port))
            studio = Studio(Project(options.project, options.backbone), options.repository)
            opened.callback(studio.close)
            token = project_token(studio.project.folder)
            connected = _label_studio(studio, options.label_studio, opened) if options.label_studio else None
        except StudioError as error:
            return _failed(str(error))
        except OSError as error:
            return _failed(f"project {options.project}: cannot be written ({error.strerror}); give another folder")
        _serve(studio, token, listening, options, connected)
    return 0


def _serve(
    studio: Studio, token: str, listening: socket.socket, options: argparse.Namespace, connected: Connected | None
) -> None:
    """Tell the page's address, and answer until Ctrl-C."""
    port = int(listening.getsockname()[1])
    local = ipaddress.IPv4Address(options.host).is_loopback
    hosts = frozenset(f"{name}:{port}" for name in (options.host, "localhost", "127.0.0.1")) if local else None
    shown = options.host if options.host != "0.0.0.0" else socket.gethostname()
    page = f"http://{shown}:{port}/?token={token}"
    if not local:
        print(
            "warning: images and the token go out in plain text, to whoever can listen on the network", file=sys.stderr
        )
    print(f"studio {page} project={studio.project.folder}", flush=True)
    if connected:
        print(f"label-studio http://{shown}:{port}{connected.path} (connect it under Settings > Model)", flush=True)
    threading.Thread(target=_warm, daemon=True).start()
    if options.open:
        threading.Timer(0.5, webbrowser.open, [page]).start()
    config = uvicorn.Config(
        make_app(studio, token, port, hosts, *((connected.prefix, connected.routes) if connected else ())),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_LINGER_SECONDS,
    )
    # Uvicorn stops at SIGINT and SIGTERM, and raises what it got again: what was opened is to be closed then too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, lambda number, frame: signal.raise_signal(signal.SIGTERM))
    with contextlib.suppress(KeyboardInterrupt):
        _Server(config, studio).run(sockets=[listening])


class _Server(uvicorn.Server):
    """Ends the pages' streams first, which would else hold it up."""

    def __init__(self, config: uvicorn.Config, studio: Studio) -> None:
        super().__init__(config)
        self._studio = studio

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop answering."""
        self._studio.events.close()
        await super().shutdown(sockets)


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket at the address. Raises StudioError, in one line, where that cannot be had."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(128)
    except (OSError, OverflowError) as error:
        listening.close()
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise StudioError(f"--port {port}: is in use on {host}; give another, or 0 for any free one") from error
        raise StudioError(f"--port {port}: cannot be had on {host} ({error}); give others") from error
    return listening


@dataclass(frozen=True, kw_only=True)
class Connected:
    """What Label Studio asks: routes below `prefix`, and the path that it is given."""

    prefix: str
    path: str
    routes: Sequence[Route]


def _label_studio(studio: Studio, url: str, opened: contextlib.ExitStack) -> Connected:
    """Return the ML backend for the Label Studio at `url`. Raises StudioError where that cannot be."""
    from slime_studio.label_studio import protocol
    from slime_studio.label_studio.backend import Backend
    from slime_studio.label_studio.fetch import LabelStudio

    source = LabelStudio(url, os.environ.get("LABEL_STUDIO_API_KEY", ""))
    secret = project_token(studio.project.folder, ".label-studio-token")
    backend = Backend(studio, source)
    opened.callback(backend.close)
    _warm()  # Label Studio waits for its first answer but 3 seconds
    return Connected(
        prefix=protocol.PREFIX, path=f"{protocol.PREFIX}/{secret}", routes=protocol.routes(backend, secret)
    )


def _warm() -> None:
    """Import what reading annotations and checking parts will need, while the person looks at the page."""
    import slime_optimize.data.annotations  # noqa: F401


def _failed(line: str) -> int:
    print(f"error: {line}", file=sys.stderr)
    return 2


def _parser(prog: str | None) -> Parser:
    parser = Parser(prog=prog or "slime studio", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    text = "folder that everything is kept in; made if it is not there (default: %(default)s)"
    add("project", nargs="?", type=Path, default=Path("slime-studio"), metavar="PROJECT", help=text)
    text = "as for slime optimize (default: what the project has, at first the embedded one)"
    add("--backbone", metavar="BACKBONE", help=text)
    add("--repository", type=Path, metavar="REPO", help="where to publish (default: PROJECT/repository)")
    text = "be the model of a project in this Label Studio, whose key is in the environment as LABEL_STUDIO_API_KEY"
    add("--label-studio", metavar="URL", help=text)
    add("--port", type=int, default=_PORT, metavar="N", help="port; 0: any free one (default: %(default)s)")
    add(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on (default: %(default)s, this machine)",
    )
    add("--no-browser", dest="open", action="store_false", help="only print the address")
    return parser
