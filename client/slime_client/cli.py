"""slime-segment: masks for many images, in many forms; and what a server has.

    slime-segment --url localhost:8001 --segmenter car photos/ "more/*.jpg" --out masks
    slime-segment --segmenter car clip.mp4 --out clip-parts --smooth flow --format overlay-mp4
    slime segment --local segmenters/car photos/ --out masks       without a server; not by slime-segment
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from slime_client import access
from slime_client.batch import COCO_FILE, Batch, run
from slime_client.blocking import Segmenter, segmenters
from slime_client.core import DEFAULT_CONCURRENCY, DEFAULT_TIMEOUT_S
from slime_client.errors import INVALID_ARGUMENT, SegmenterError
from slime_client.formats import FORMATS, OVERLAY
from slime_client.jobs import JOURNAL, listed, plan
from slime_client.local import LocalSegmenter
from slime_client.lookup import Description
from slime_client.video import command as video
from slime_client.video.results import OVERLAY_MP4

_URL = "localhost:8001"
FINE, SOME_FAILED, UNUSABLE, INTERRUPTED = 0, 1, 2, 130


def main(
    argv: Sequence[str] | None = None,
    prog: str | None = None,
    local: Callable[[str], LocalSegmenter] | None = None,
) -> int:
    """Run the command with the words `argv` (default: the command line's); return its exit code.

    `prog` is the name that the person typed, for the usage. `local` returns the segmenter that --local names, and is
    None where only the client is installed.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    prog = prog or "slime-segment"
    command = {"list": _list, "info": _info}.get(words[0] if words else "")
    try:
        code = command(words[1:], f"{prog} {words[0]}") if command else _segment(words, prog, local)
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


def _segment(words: Sequence[str], prog: str, local: Callable[[str], LocalSegmenter] | None) -> int:
    options = _segment_parser(prog).parse_args(words)
    if options.concurrency is not None:
        Segmenter.checked_concurrency(options.concurrency)
    if video.is_wanted(options):
        return _segment_clip(options, local)
    formats = list(dict.fromkeys(options.format or ["palette"])) + [OVERLAY] * options.overlay
    for name in formats:
        FORMATS[name].check()
    arguments = options.images + (listed(options.list, sys.stdin) if options.list else [])
    jobs = plan(arguments, options.out, lambda out, stem: _results(out, stem, formats), sys.stdin.buffer)
    if not jobs:
        given = ", ".join(arguments) or "nothing"
        raise SegmenterError(f"{given}: no images found; give image files, folders, globs or -", INVALID_ARGUMENT)
    with _segmenter(options, local) as segmenter:
        _make(options.out)
        wanted = Batch(
            jobs=jobs,
            out=options.out,
            formats=formats,
            concurrency=options.concurrency or segmenter.concurrency,
            overwrite=options.overwrite,
            as_json=options.json,
        )
        failures, gone = run(segmenter, wanted)
    return UNUSABLE if gone else SOME_FAILED if failures else FINE


def _segment_clip(options: argparse.Namespace, local: Callable[[str], LocalSegmenter] | None) -> int:
    wanted = video.Wanted.by(options)
    with _segmenter(options, local) as segmenter:
        _make(options.out)
        return FINE if video.run(segmenter, wanted) else SOME_FAILED


def _segmenter(
    options: argparse.Namespace, local: Callable[[str], LocalSegmenter] | None
) -> Segmenter | LocalSegmenter:
    return _connected(options) if options.local is None else _on_this_machine(options, local)


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"--out {out}: cannot be made ({error.strerror}); give another folder"
        raise SegmenterError(reason) from error


def _list(words: Sequence[str], prog: str) -> int:
    options = _parser(prog, "List the segmenters of a server.").parse_args(words)
    timeout = DEFAULT_TIMEOUT_S if options.timeout is None else options.timeout
    found = segmenters(options.url, timeout=timeout, access=access.taken(vars(options)))
    width = max((len(description.name) for description in found), default=0)
    for description in found:
        # Servers of before tell neither of those in the baked form.
        version, published = (str(description.about.get(key, "-")) for key in ("version", "published"))
        when = published[:16].replace("T", " ")
        columns = (f"{description.name:{width}}", f"{description.form:6}", f"version {version:>3}", f"{when:16}")
        line = "  ".join((*columns, ", ".join(description.parts)))
        print(_as_json(description) if options.json else line)
    if not found:
        print(f"{options.url}: serves no segmenter", file=sys.stderr)
    return FINE


def _info(words: Sequence[str], prog: str) -> int:
    parser = _parser(prog, "Tell what a server says of one segmenter.")
    parser.add_argument("segmenter", metavar="NAME")
    options = parser.parse_args(words)
    with _connected(options) as segmenter:
        description = segmenter.description
    if options.json:
        print(_as_json(description))
        return FINE
    for key in ("name", "form", "model"):
        print(f"{key}: {getattr(description, key)}")
    print("parts:")
    for index, (part, colour) in enumerate(zip(description.parts, description.colours, strict=True)):
        print(f"  {index:3}  #{colour[0]:02x}{colour[1]:02x}{colour[2]:02x}  {part}")
    for key, value in sorted(description.about.items()):
        print(f"{key}: {value}")
    return FINE


def _as_json(description: Description) -> str:
    known = {key: getattr(description, key) for key in ("name", "form", "model", "parts", "colours")}
    return json.dumps({**description.about, **known}, ensure_ascii=False)


def _connected(options: argparse.Namespace) -> Segmenter:
    allowed = access.taken(vars(options))
    return Segmenter(options.url, options.segmenter, timeout=options.timeout, access=allowed)


def _on_this_machine(options: argparse.Namespace, local: Callable[[str], LocalSegmenter] | None) -> LocalSegmenter:
    if options.url != _URL:
        raise SegmenterError(
            f"--local: asks no server, got --url {options.url} too; give one of them", INVALID_ARGUMENT
        )
    if local is None:
        raise SegmenterError("--local: is an option of `slime segment`; run that", INVALID_ARGUMENT)
    return local(options.local)


def _results(out: Path, stem: str, formats: Sequence[str]) -> list[Path]:
    return [*(FORMATS[name].path(out, stem) for name in formats), out / COCO_FILE, out / JOURNAL]


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and leave with exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(UNUSABLE, f"error: {message}; {self.prog} --help shows the options\n")


def _segment_parser(prog: str) -> argparse.ArgumentParser:
    hint = f"{prog} list, {prog} info NAME: what a server has (--help shows their options)."
    parser = Parser(prog=prog, description="Segment images with a served segmenter.", epilog=hint)
    group = parser.add_argument_group("images and results")
    add, which = group.add_argument, group.add_mutually_exclusive_group(required=True).add_argument
    kinds = {name: form.meaning for name, form in FORMATS.items() if name != OVERLAY}
    add(
        "images",
        nargs="*",
        metavar="IMAGES",
        help="files, folders, quoted globs, - for an image on stdin; or a clip",
    )
    add("--list", metavar="FILE", help="more images, one path a line; - is stdin")
    which("--segmenter", metavar="NAME", help="the segmenter's name on the server")
    here = "without a server, for looking: a folder of slime optimize, or REPOSITORY/NAME of an exported one"
    which("--local", metavar="SEGMENTER", help=here)
    add("--out", required=True, type=Path, metavar="DIR", help="folder for the results")
    meanings = "; ".join(f"{name}: {meaning}" for name, meaning in kinds.items())
    meanings += f"; {OVERLAY_MP4}: a clip with its parts tinted"
    add("--format", action="append", choices=[*kinds, OVERLAY_MP4], help=f"{meanings}; repeatable (default: palette)")
    add("--no-overlay", dest="overlay", action="store_false", help="no JPEGs of the images with their parts tinted")
    flying = f"images in flight (default: {DEFAULT_CONCURRENCY}, fewer where the server says that an image takes long)"
    add("--concurrency", type=int, metavar="N", help=flying)
    add("--overwrite", action="store_true", help="do again what is done; without it, a stopped run goes on")
    video.add_options(parser)
    return _with_server(parser)


def _parser(prog: str, description: str) -> argparse.ArgumentParser:
    return _with_server(Parser(prog=prog, description=description))


def _with_server(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the options of every command: the server, how long it may take, and how it is reached."""
    add = parser.add_argument_group("the server and its answers").add_argument
    add("--url", default=_URL, help="the server's gRPC host:port (default: %(default)s)")
    waiting = "seconds an image, or an answer, may take, tries included"
    usual = f"(default: {DEFAULT_TIMEOUT_S:g}, more where the server says that an image takes long)"
    add("--timeout", type=float, metavar="S", help=f"{waiting} {usual}")
    add("--json", action="store_true", help="a line of JSON on stdout for each, for scripts")
    access.add_options(parser)
    return parser
