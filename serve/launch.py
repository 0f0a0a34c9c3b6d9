"""Serve a model repository on this machine with a real Triton server: python serve/launch.py --repository FOLDER

Prints one line when every segmenter has answered an image, and serves until Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from slime_serve import ServeError, Server, ServerError, ServerSettings, Stopped


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 stopped, 1 the server failed, 2 wrong usage."""
    arguments = _parser().parse_args(argv)
    stop = _StopRequest()
    try:
        with Server(ServerSettings(**vars(arguments)), stop.is_wanted) as server:
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
    return parser


if __name__ == "__main__":
    sys.exit(main())
