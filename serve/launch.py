"""Serve a model repository on this machine with a real Triton server: python serve/launch.py --repository FOLDER

Prints one line when every segmenter has answered an image, and serves until Ctrl-C or SIGTERM: what dies is started
again, and said on stderr.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from types import FrameType

from slime_serve import Security, ServeError, Server, ServerError, ServerSettings, Stopped


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 stopped, 1 the server failed, 2 wrong usage."""
    arguments = _parser().parse_args(argv)
    stop = _StopRequest()
    try:
        with Server(_settings(arguments), stop.is_wanted, _say) as server:
            names = ",".join(server.segmenters)
            print(
                f"ready grpc={server.grpc} http={server.http} metrics={server.metrics} segmenters={names}", flush=True
            )
            server.wait()
    except Stopped:
        pass
    except ServeError as error:
        if isinstance(error, ServerError) and error.log_tail:
            print(error.log_tail, file=sys.stderr)
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


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
        return self._wanted

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._wanted = True


def _parser() -> argparse.ArgumentParser:
    default = ServerSettings(repository=Path())
    parser = argparse.ArgumentParser(description="Serve the segmenters of a model repository with Triton on 127.0.0.1.")
    parser.add_argument("--repository", type=Path, required=True, help="folder that export/build.py published into")
    for name in ("grpc", "http", "metrics"):
        port = getattr(default, f"{name}_port")
        parser.add_argument(f"--{name}-port", type=int, default=port, help=f"0: any free one (default {port})")
    parser.add_argument("--threads", type=int, default=default.threads, help="per network (default: all cores)")
    parser.add_argument("--timeout", type=float, default=default.timeout, help="seconds to wait until ready")
    parser.add_argument("--log", type=Path, help="file for the server's output (default: temporary)")
    parser.add_argument(
        "--no-verify", dest="verify", action="store_false", help="serve files that are not as the manifest says"
    )
    parser.add_argument("--probe", type=float, default=default.probe, metavar="S", help="seconds between two probes")
    parser.add_argument("--drain", type=float, default=default.drain, metavar="S", help="seconds to finish in, stopped")
    parser.add_argument(
        "--instances", type=_instances, action="append", default=[], metavar="MODEL=N",
        help="processes of a model (default: as suits the machine)",
    )  # fmt: skip
    parser.add_argument("--response-cache", type=int, default=default.response_cache, metavar="BYTES",
                        help="for encoded images that come again (default: none)")  # fmt: skip
    parser.add_argument("--trace-otlp", metavar="URL", help="OpenTelemetry collector, OTLP over HTTP")
    parser.add_argument(
        "--trace-every", type=int, default=default.trace_every, metavar="N", help="trace one request in N"
    )
    parser.add_argument(
        "--triton", action="append", default=[], metavar="ARGUMENT", help="further one of tritonserver; repeat at will"
    )
    _add_security(parser.add_argument_group("who may ask what"), default.security)
    return parser


def _instances(text: str) -> tuple[str, int]:
    model, _, count = text.partition("=")
    if not model or not count.isdigit():
        raise argparse.ArgumentTypeError(f"got {text!r}, expected MODEL=N")
    return model, int(count)


def _add_security(group: argparse._ArgumentGroup, default: Security) -> None:
    group.add_argument(
        "--listen", default=default.listen, metavar="ADDRESS", help=f"of gRPC, with TLS (default {default.listen})"
    )
    group.add_argument("--tls-cert", type=Path, metavar="PEM", help="the server's own")
    group.add_argument("--tls-key", type=Path, metavar="PEM", help="its private key")
    group.add_argument("--tls-ca", type=Path, metavar="PEM", help="answer only clients this authority vouches for")
    group.add_argument("--insecure", action="store_true", help="no TLS, although other machines can listen")
    group.add_argument("--admin-key-file", type=Path, metavar="FILE", help="key that loading models then takes")


if __name__ == "__main__":
    sys.exit(main())
