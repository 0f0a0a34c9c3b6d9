"""slime-segment: masks for many images, in many forms; and what a server has.

    slime-segment --url localhost:8001 --segmenter car photos/ "more/*.jpg" --out masks
    slime-segment list --url localhost:8001
    slime-segment info car --url localhost:8001

Exit codes: 0 every image has its results; 1 some failed, the others have theirs; 2 the command line is wrong, or the
server cannot be reached (any more); 130 interrupted, or nobody reads what it prints any more. What was written is
whole in every case.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slime_client import access, batch
from slime_client.core import DEFAULT_TIMEOUT_S
from slime_client.description import Description
from slime_client.errors import INVALID_ARGUMENT, SegmenterError
from slime_client.formats import FORMATS, OVERLAY
from slime_client.inputs import listed, plan
from slime_client.journal import NAME
from slime_client.many import checked_concurrency
from slime_client.segmenter import Segmenter, segmenters

FINE, SOME_FAILED, UNUSABLE, INTERRUPTED = 0, 1, 2, 130
_EPILOG = "slime-segment list, slime-segment info NAME: what a server has (--help has their options)."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    command = {"list": _list, "info": _info}.get(words[0] if words else "")
    try:
        code = command(words[1:]) if command else _segment(words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # As with `| head`. Python would complain of what it then cannot write at its end.
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
        return INTERRUPTED
    except SegmenterError as error:
        print(f"error: {error}", file=sys.stderr)
        return UNUSABLE
    except KeyboardInterrupt:
        print("\ninterrupted; what was written is whole, and the same command goes on", file=sys.stderr)
        return INTERRUPTED


def _segment(words: Sequence[str]) -> int:
    options = _segment_parser().parse_args(words)
    formats = list(dict.fromkeys(options.format or ["palette"])) + [OVERLAY] * options.overlay
    for name in formats:
        FORMATS[name].check()
    arguments = options.images + (listed(options.list, sys.stdin) if options.list else [])
    jobs = plan(arguments, options.out, lambda out, stem: _results(out, stem, formats), sys.stdin.buffer)
    if not jobs:
        given = ", ".join(arguments) or "nothing"
        raise SegmenterError(f"{given}: no images found; give image files, folders, globs or -", INVALID_ARGUMENT)
    concurrency = checked_concurrency(options.concurrency)
    allowed = access.taken(vars(options))
    with Segmenter(options.url, options.segmenter, timeout=options.timeout, access=allowed) as segmenter:
        _make_folder(options.out)
        wanted = batch.Batch(
            jobs=jobs,
            out=options.out,
            formats=formats,
            concurrency=concurrency,
            overwrite=options.overwrite,
            as_json=options.json,
        )
        failures, gone = batch.run(segmenter, wanted)
    return UNUSABLE if gone else SOME_FAILED if failures else FINE


def _list(words: Sequence[str]) -> int:
    options = _parser("list", "List the segmenters of a server.").parse_args(words)
    found = segmenters(options.url, timeout=options.timeout, access=access.taken(vars(options)))
    width = max((len(description.name) for description in found), default=0)
    for description in found:
        line = f"{description.name:{width}}  {description.form:6}  {', '.join(description.parts)}"
        print(json.dumps(_told(description), ensure_ascii=False) if options.json else line)
    if not found:
        print(f"{options.url}: serves no segmenter", file=sys.stderr)
    return FINE


def _info(words: Sequence[str]) -> int:
    parser = _parser("info", "Tell what a server says of one segmenter.")
    parser.add_argument("segmenter", metavar="NAME")
    options = parser.parse_args(words)
    allowed = access.taken(vars(options))
    with Segmenter(options.url, options.segmenter, timeout=options.timeout, access=allowed) as segmenter:
        description = segmenter.description
    if options.json:
        print(json.dumps(_told(description), ensure_ascii=False))
        return FINE
    for key, value in {"name": description.name, "form": description.form, "model": description.model}.items():
        print(f"{key}: {value}")
    print("parts:")
    for index, (part, colour) in enumerate(zip(description.parts, description.colours, strict=True)):
        print(f"  {index:3}  #{colour[0]:02x}{colour[1]:02x}{colour[2]:02x}  {part}")
    for key, value in sorted(description.about.items()):
        print(f"{key}: {value}")
    return FINE


def _told(description: Description) -> dict[str, Any]:
    return {
        **description.about,
        "name": description.name,
        "form": description.form,
        "model": description.model,
        "parts": description.parts,
        "colours": description.colours,
    }


def _segment_parser() -> argparse.ArgumentParser:
    parser = _parser("", "Segment images with a served segmenter.", epilog=_EPILOG)
    add = parser.add_argument
    kinds = {name: form.meaning for name, form in FORMATS.items() if name != OVERLAY}
    add("images", nargs="*", metavar="IMAGES", help="files, folders, quoted globs, or - for an image on stdin")
    add("--list", metavar="FILE", help="more images, one path a line; - is stdin")
    add("--segmenter", required=True, metavar="NAME", help="the segmenter's name on the server")
    add("--out", required=True, type=Path, metavar="DIR", help="folder for the results")
    add(
        "--format",
        action="append",
        choices=list(kinds),
        help="; ".join(f"{name}: {meaning}" for name, meaning in kinds.items()) + "; repeatable (default: palette)",
    )
    add("--no-overlay", dest="overlay", action="store_false", help="no JPEGs of the images with their parts tinted")
    add("--concurrency", type=int, default=8, metavar="N", help="images in flight (default: %(default)s)")
    add("--overwrite", action="store_true", help="do again what is done; without it, a stopped run goes on")
    return parser


def _parser(command: str, description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"slime-segment {command}".strip(), description=description, epilog=epilog)
    add = parser.add_argument
    add("--url", default="localhost:8001", help="the server's gRPC host:port (default: %(default)s)")
    add(
        "--timeout",
        type=float,
        default=DEFAULT_TIMEOUT_S,
        metavar="S",
        help="seconds an image, or an answer, may take, tries included (default: %(default)g)",
    )
    add("--json", action="store_true", help="a line of JSON on stdout for each, for scripts")
    access.add_options(parser)
    return parser


def _results(out: Path, stem: str, formats: Sequence[str]) -> list[Path]:
    return [*(FORMATS[name].path(out, stem) for name in formats), out / batch.COCO_FILE, out / NAME]


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SegmenterError(f"--out {folder}: cannot be made ({error.strerror}); give another folder") from error
