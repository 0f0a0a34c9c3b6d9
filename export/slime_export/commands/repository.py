"""List, roll back, remove and upgrade the segmenters of a model repository, or send it through an object store.

    python export/repository.py list REPO [--url HOST:PORT] [--json]
    python export/repository.py rollback REPO NAME [--to VERSION] [--url HOST:PORT]
    python export/repository.py remove REPO NAME [--url HOST:PORT]
    python export/repository.py upgrade REPO [NAME ...] [--url HOST:PORT]
    python export/repository.py push REPO s3://BUCKET/PREFIX
    python export/repository.py pull s3://BUCKET/PREFIX REPO [--watch SECONDS] [--url HOST:PORT]

export/build.py publishes segmenters. With --url a running server follows without losing a request. Credentials of a
store come from the environment. Exit codes: 0 done, 1 something failed (the server, the store, the disk, another
process that holds the repository, a segmenter that could not be upgraded), 2 something in the input cannot be used.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slime_client import SegmenterError, access
from slime_client.cli import Parser
from slime_export.errors import BusyError, ServerError
from slime_export.publish import maintenance
from slime_export.publish import pull as pulling
from slime_export.publish import push as pushing
from slime_export.publish.lock import WAIT_S
from slime_export.publish.server_control import Server
from slime_repository import listing
from slime_repository.errors import ObjectStoreError, RepositoryError
from slime_repository.listing import Row
from slime_repository.object_store import ObjectStore

_FAILURES = (BusyError, ObjectStoreError, ServerError, OSError)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command and return the exit code."""
    arguments = vars(_parser(prog).parse_args(argv))
    command: Callable[..., int] = arguments.pop("command")
    try:
        if command is _push:  # which no server follows
            return command(**arguments)
        allowed = access.taken(arguments)
        url = arguments.pop("url")
        if command is _pull:  # which asks for it whenever there is something new
            return command(server=lambda: Server(url, allowed) if url else None, **arguments)
        return command(server=Server(url, allowed) if url else None, **arguments)
    except (RepositoryError, SegmenterError) as error:
        return _failed(error, 2)
    except _FAILURES as error:
        return _failed(error, 1)


def _list(repository: Path, as_json: bool, server: Server | None) -> int:
    found = listing.rows(repository, server.states() if server else None)
    if as_json:
        print(json.dumps([asdict(row) for row in found], indent=2, ensure_ascii=False))
    else:
        print(table(found) if found else f"{repository}: no segmenters")
    return 0


def _rollback(repository: Path, name: str, to: int | None, wait: float, server: Server | None) -> int:
    old, new = maintenance.rollback(repository, name, to, server, wait_s=wait, say=_say)
    print(f"{name} serves version {old} again, as version {new}, in {repository}")
    return 0


def _remove(repository: Path, name: str, wait: float, server: Server | None) -> int:
    gone = maintenance.remove(repository, name, server, wait_s=wait, say=_say)
    print(f"removed {', '.join(gone)} from {repository}")
    return 0


def _upgrade(repository: Path, names: list[str], wait: float, server: Server | None) -> int:
    outcomes = maintenance.upgrade(repository, names, server, wait_s=wait, say=_say)
    for each in outcomes:
        if each.reason:
            print(f"error: segmenter {each.name}: is left as it is: {each.reason}", file=sys.stderr)
        else:
            print(f"{each.name} runs the current code, as version {each.version}")
    if not outcomes:
        print(f"{repository}: the current code runs already; nothing was changed")
    return int(any(each.reason for each in outcomes))


def _push(repository: Path, store: str, replace: bool, wait: float) -> int:
    done = pushing.push(repository, ObjectStore(store), replace=replace, wait_s=wait, say=_say)
    what = f"pushed {repository} as generation" if done.new else f"{repository} is there already, as generation"
    print(f"{what} {done.generation} of {store} ({_size(done.sent)} travelled)")
    return 0


def _pull(
    store: str, repository: Path, watch: float | None, replace: bool, wait: float, server: Callable[[], Server | None]
) -> int:
    opened = ObjectStore(store)

    def once() -> None:
        done = pulling.pull(opened, repository, server, replace=replace, wait_s=wait, say=_say)
        if done.changed:
            print(
                f"{repository} is generation {done.generation} of {store} ({_size(done.received)} travelled)",
                flush=True,
            )
        elif watch is None:
            print(f"{repository} is generation {done.generation} of {store} already")

    if watch is None:
        once()
        return 0
    # Also as the first process of a container, where a signal without a handler is ignored.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    told = ""
    while True:
        try:
            once()
            told = ""
        except (RepositoryError, SegmenterError, *_FAILURES) as error:
            if str(error) != told:
                _failed(error, 1)
            told = str(error)
        time.sleep(watch)


def _seconds(text: str) -> float:
    try:
        if (seconds := float(text)) > 0:
            return seconds
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"got {text}, expected seconds, more than 0")


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a table for people; it has a column of states where a server was asked."""
    from tabulate import tabulate

    asked = any(row.state is not None for row in rows)
    headers = ["name", "version", "published", "parts", "precision", "form", "size", "kept"] + ["state"] * asked
    return str(tabulate([_cells(row, asked) for row in rows], headers, disable_numparse=True))


def _cells(row: Row, asked: bool) -> list[str]:
    parts = f"{len(row.parts)}: {' '.join(row.parts)}"
    shown = [
        row.name,
        f"{row.version} (= {row.rolled_back_to})" if row.rolled_back_to else str(row.version),
        (row.published or row.created)[:16].replace("T", " "),
        parts if len(parts) <= 40 else parts[:39] + "…",
        row.precision if row.format == "onnx" else f"{row.precision}, {row.format}",
        f"{row.form}, {row.maps}",
        _size(row.bytes),
        " ".join(map(str, row.versions)),
    ]
    return shown + [row.state or ""] * asked


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _failed(error: Exception, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = Parser(
        prog=prog or "export/repository.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    places: dict[str, dict[str, Any]] = {
        "repository": {"type": Path, "metavar": "REPO", "help": "folder that export/build.py published into"},
        "store": {
            "metavar": "STORE",
            "help": "s3://BUCKET/PREFIX, gs://…, abfs://…, file:///FOLDER, or what fsspec knows",
        },
    }

    def command(
        name: str, run: Callable[..., int], text: str, *given: str, changes: bool = True, follows: bool = True
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(command=run)
        for place in given or ("repository",):
            made.add_argument(place, **places[place])
        if changes:
            waiting = f"wait for another process that is changing the repository (default: {WAIT_S:g})"
            made.add_argument("--wait", type=float, default=WAIT_S, metavar="SECONDS", help=waiting)
        if follows:
            made.add_argument("--url", metavar="HOST:PORT", help="gRPC endpoint of a running server that is to follow")
            access.add_options(made)
        return made

    shown = command("list", _list, "what is in it, and what a running server says of each", changes=False)
    shown.add_argument("--json", action="store_true", dest="as_json", help="for scripts")
    back = command("rollback", _rollback, "serve an older version's content again, as a new version")
    back.add_argument("name", metavar="NAME")
    back.add_argument("--to", type=int, metavar="VERSION", help="default: the version before the one that serves")
    gone = command("remove", _remove, "take a segmenter away, and what nobody else uses")
    gone.add_argument("name", metavar="NAME")
    newer = command("upgrade", _upgrade, "run the current code, each segmenter tried on its training image first")
    newer.add_argument("names", nargs="*", metavar="NAME", help="default: all segmenters")
    text = "send it to an object store, where only what is new travels"
    sent = command("push", _push, text, "repository", "store", follows=False)
    sent.add_argument(
        "--replace", action="store_true", help="whatever the store has, and look for each part of it there"
    )
    text = "make it what an object store has, without a gap on a running server"
    got = command("pull", _pull, text, "store", "repository")
    got.add_argument("--watch", type=_seconds, metavar="SECONDS", help="go on, and look that often for what is new")
    got.add_argument("--replace", action="store_true", help="give up what was changed here and never pushed")
    return parser
