"""Lists, rolls back and removes the segmenters of a model repository; export/build.py publishes them.

    python export/repository.py list REPO [--url HOST:PORT] [--json]
    python export/repository.py rollback REPO NAME [--to VERSION] [--url HOST:PORT]
    python export/repository.py remove REPO NAME [--url HOST:PORT]

With --url a running server follows without losing a request. Exit codes: 0 done, 1 something failed (the server, the
disk, another process that holds the repository), 2 something in the input cannot be used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from slime_client import SegmenterError, access
from slime_export.errors import BusyError, ServerError
from slime_export.publish import listing
from slime_export.publish.lock import WAIT_S
from slime_export.publish.removal import remove
from slime_export.publish.rollback import rollback
from slime_export.publish.server_control import Server
from slime_repository.errors import RepositoryError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    arguments = vars(_parser().parse_args(argv))
    command: Callable[..., None] = arguments.pop("command")
    try:
        allowed = access.taken(arguments)
        url = arguments.pop("url")
        command(server=Server(url, allowed) if url else None, **arguments)
    except (RepositoryError, SegmenterError) as error:
        return _failed(error, 2)
    except (BusyError, ServerError, OSError) as error:
        return _failed(error, 1)
    return 0


def _list(repository: Path, json: bool, server: Server | None) -> None:
    found = listing.rows(repository, server)
    print(listing.as_json(found) if json else listing.table(found) if found else f"{repository}: no segmenters")


def _rollback(repository: Path, name: str, to: int | None, wait: float, server: Server | None) -> None:
    old, new = rollback(repository, name, to, server, wait_s=wait, say=_say)
    print(f"{name} serves version {old} again, as version {new}, in {repository}")


def _remove(repository: Path, name: str, wait: float, server: Server | None) -> None:
    gone = remove(repository, name, server, wait_s=wait, say=_say)
    print(f"removed {', '.join(gone)} from {repository}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _failed(error: Exception, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="export/repository.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    shown = _command(commands, "list", _list, "what is in it, and what a running server says of each")
    shown.add_argument("--json", action="store_true", help="for scripts")
    back = _command(commands, "rollback", _rollback, "serve an older version's content again, as a new version")
    back.add_argument("name", metavar="NAME")
    back.add_argument("--to", type=int, metavar="VERSION", help="default: the version before the one that serves")
    gone = _command(commands, "remove", _remove, "take a segmenter away, and what nobody else uses")
    gone.add_argument("name", metavar="NAME")
    for each in (back, gone):
        waiting = f"for another process that is changing the repository ({WAIT_S:g})"
        each.add_argument("--wait", type=float, default=WAIT_S, metavar="SECONDS", help=waiting)
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, command: Callable[..., None], text: str
) -> argparse.ArgumentParser:
    made = commands.add_parser(name, help=text, description=text)
    made.set_defaults(command=command)
    made.add_argument("repository", type=Path, metavar="REPO", help="folder that export/build.py published into")
    made.add_argument("--url", metavar="HOST:PORT", help="gRPC endpoint of a running server that is to follow")
    access.add_options(made)
    return made


if __name__ == "__main__":
    sys.exit(main())
