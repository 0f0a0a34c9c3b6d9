"""Serve a model repository on this machine with a real Triton server.

    python serve/launch.py --repository FOLDER

Prints one line when every segmenter has answered an image, and serves until Ctrl-C or SIGTERM: what dies is started
again, and said on stderr. Exit codes: 0 it was stopped, 1 the server failed, 2 something given cannot be used.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import NoReturn

from slime_serve import Security, ServeError, Server, ServerError, ServerSettings, Stopped, lines

HELP_ALL = "--help-all"


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Serve with the words ``argv`` (default: the command line's); return the exit code.

    ``prog`` is the name that the person typed, for the usage.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = _parser(prog, everything=HELP_ALL in words).parse_args(words)
    stop = _StopRequest()
    form = vars(arguments).pop("log_format")
    say = lines.say(form)
    try:
        with Server(_settings(arguments), stop.is_wanted, say) as server:
            names = ",".join(server.segmenters)
            addresses = f"grpc={server.grpc} http={server.http} metrics={server.metrics}"
            print(f"ready {addresses} segmenters={names}", flush=True)
            server.wait()
    except Stopped:
        pass
    except ServeError as error:
        # The end of a command that people type is told as other commands tell it.
        told = [*(error.log_tail.splitlines() if isinstance(error, ServerError) else ()), f"error: {error}"]
        for line in told:
            say(line) if form == "json" else print(line, file=sys.stderr)
        return error.exit_code
    return 0


def _settings(arguments: argparse.Namespace) -> ServerSettings:
    values = vars(arguments)
    values["triton"], values["instances"] = tuple(values["triton"]), dict(values["instances"])
    security = Security(**{each.name: values.pop(each.name) for each in fields(Security)})
    return ServerSettings(**values, security=security)


class _StopRequest:
    """Remembers that a signal came, to be asked for.

    An exception out of the handler would be lost where Python happens to be in a destructor, and a second Ctrl-C
    would break off the cleaning up.
    """

    def __init__(self) -> None:
        self._wanted = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._remember)

    def is_wanted(self) -> bool:
        """Return whether a signal came."""
        return self._wanted

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._wanted = True


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and leave with exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; {self.prog} --help shows the options\n")


def _parser(prog: str | None, *, everything: bool) -> argparse.ArgumentParser:
    """Return the parser. ``everything``: the help shows the options for operators too."""
    default = ServerSettings(repository=Path())
    parser = _Parser(prog=prog, description="Serve the segmenters of a model repository with Triton on this machine.")
    parser.add_argument(HELP_ALL, action="help", help="show every option, those for operators too, and exit")
    add = parser.add_argument_group("what is served, and where").add_argument
    add("--repository", type=Path, required=True, metavar="REPO", help="folder that export/build.py published into")
    for name in ("grpc", "http", "metrics"):
        port = getattr(default, f"{name}_port")
        add(f"--{name}-port", type=int, default=port, metavar="N", help=f"port; 0: any free one (default {port})")
    add("--threads", type=int, default=default.threads, metavar="N", help="for each network (default: all cores)")
    add(
        "--timeout",
        type=float,
        default=default.timeout,
        metavar="S",
        help=f"seconds to wait until ready ({default.timeout:g})",
    )
    add("--log", type=Path, metavar="FILE", help="file for the server's output (default: a temporary one)")
    lining = "of the lines on stderr: time, level and text, or a JSON object each (default text)"
    add("--log-format", choices=lines.FORMATS, default="text", help=lining)
    unverified = "serve files that are not as the manifest says"
    add("--no-verify", dest="verify", action="store_false", help=unverified)

    add = parser.add_argument_group("who may ask what").add_argument
    listen = f"address that gRPC listens on, with TLS (default {default.security.listen})"
    add("--listen", default=default.security.listen, metavar="ADDRESS", help=listen)
    http = f"address that metrics and health listen on, in plain text (default {default.security.listen_http})"
    add("--listen-http", default=default.security.listen_http, metavar="ADDRESS", help=http)
    add("--tls-cert", type=Path, metavar="PEM", help="the server's own certificate")
    add("--tls-key", type=Path, metavar="PEM", help="private key of --tls-cert")
    add("--tls-ca", type=Path, metavar="PEM", help="answer only clients with a certificate of this authority")
    add("--insecure", action="store_true", help="no TLS, although other machines can listen")
    add("--admin-key-file", type=Path, metavar="FILE", help="file with the key that loading models then needs")

    add = (parser.add_argument_group("for operators") if everything else parser).add_argument

    def shown(text: str) -> str:
        return text if everything else argparse.SUPPRESS

    several = "processes of a model (default: as suits the machine); repeatable"
    probing = f"seconds between two looks at the running server ({default.probe:g})"
    draining = f"seconds that requests have to finish once it is asked to stop ({default.drain:g})"
    add("--instances", type=_instances, action="append", default=[], metavar="MODEL=N", help=shown(several))
    add("--probe", type=float, default=default.probe, metavar="S", help=shown(probing))
    add("--drain", type=float, default=default.drain, metavar="S", help=shown(draining))
    caching = "memory for encoded images that come again (default: none)"
    add("--response-cache", type=int, default=default.response_cache, metavar="BYTES", help=shown(caching))
    add("--trace-otlp", metavar="URL", help=shown("OpenTelemetry collector that takes traces, OTLP over HTTP"))
    tracing = f"trace one request in N (default {default.trace_every})"
    add("--trace-every", type=int, default=default.trace_every, metavar="N", help=shown(tracing))
    add(
        "--triton",
        action="append",
        default=[],
        metavar="ARGUMENT",
        help=shown("further one of tritonserver; repeatable"),
    )
    return parser


def _instances(text: str) -> tuple[str, int]:
    model, _, count = text.partition("=")
    if not model or not count.isdigit():
        raise argparse.ArgumentTypeError(f"got {text!r}, expected MODEL=N")
    return model, int(count)
