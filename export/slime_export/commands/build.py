"""Export a segmenter to ONNX or TensorRT, prove it equal to PyTorch, and publish it into a model repository.

python export/build.py DIR --repository REPO [--name NAME] [--url HOST:PORT] [--set threshold=0.1] [--maps weighted] …
"""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slime_client import SegmenterError, access
from slime_export.errors import BusyError, EngineError, ParityError, QualityError, ServerError
from slime_export.graph import engine_builder
from slime_export.options import ACCELERATORS, EMBEDDINGS, ExportOptions
from slime_export.pipeline import export
from slime_export.tuning import tuned
from slime_image import ImageError
from slime_optimize.errors import InputError, failed
from slime_optimize.options import HELP_ALL, SET_HELP, Parser
from slime_repository.errors import RepositoryError
from slime_repository.variant import ENCODERS, FORMATS, MAPS, PRECISIONS


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Return the exit code: 0, 1 where something failed (parity, server, disk) or is too bad, 2 for unusable input."""
    words = sys.argv[1:] if argv is None else argv
    given = vars(_parser(prog, everything=HELP_ALL in words).parse_args(words))
    try:
        if (dry_run := given.pop("dry_run")) and not given["tune"]:
            raise InputError("--dry-run: goes with --tune; give both, or neither")
        engine = {name: given.pop(name) for name in ("hardware", "version_compatible", "opt_batch")}
        options = ExportOptions(
            engine=engine_builder.Options(**engine),
            access=access.taken(given),
            changes=tuple(given.pop("changes")),
            **given,
        )
        if options.tune:
            options = tuned(options, say=_say)
        if dry_run:
            return 0
        published, _ = export(options, say=_say)
    except (InputError, RepositoryError, ImageError, SegmenterError) as error:
        return failed(error, 2)
    except OSError as error:
        return failed(OSError(disk_line(error)), 1)
    except (BusyError, EngineError, ParityError, QualityError, ServerError) as error:
        return failed(error, 1)
    print(f"published {published.name} version {published.version} in {options.repository}")
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


def disk_line(error: OSError) -> str:
    """Return one line for what a disk refused."""
    subject = f"disk of {error.filename}" if error.filename else "disk"
    reason = error.strerror or str(error)
    if error.errno == errno.ENOSPC and "nothing was published" not in reason:  # not from `require_room`
        reason = "is full; free some of it, or give a --repository on another disk; nothing was published"
    return f"{subject}: {reason}"


def _parser(prog: str | None, *, everything: bool) -> argparse.ArgumentParser:
    """Return the parser. What researchers and engines need is shown with `everything` alone."""
    parser = Parser(prog=prog or "export/build.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="segmenter written by optimize/run.py")
    parser.add_argument(
        "--repository", type=Path, required=True, metavar="REPO", help="model repository; made if it is not there"
    )
    parser.add_argument("--name", default=ExportOptions.name, help="name to serve it under (default: the folder's)")
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="NAME=VALUE", help=SET_HELP)
    parser.add_argument("--url", metavar="HOST:PORT", help="gRPC endpoint of a running server that is to follow")
    told = "show this help" if everything else "show every option, researchers' and engines' too,"
    parser.add_argument(HELP_ALL, action="help", help=f"{told} and exit")

    served, default = parser.add_argument_group("what is served"), ExportOptions
    served.add_argument(
        "--embedding",
        choices=EMBEDDINGS,
        default=default.embedding,
        help="baked: a UNet for each segmenter; shared: one UNet for many, each a file of its own (default: baked)",
    )
    served.add_argument(
        "--maps",
        choices=MAPS,
        default=default.maps,
        help="averaged: Python weights the maps; weighted: the UNet does, without an N x N map (default: averaged)",
    )
    served.add_argument("--precision", choices=PRECISIONS, default=default.precision, help="(default: fp32, exact)")
    served.add_argument(
        "--accelerator", choices=ACCELERATORS, help="what runs the networks (default: the GPU where there is one)"
    )
    served.add_argument(
        "--format",
        choices=FORMATS,
        default=default.format,
        help="tensorrt needs the GPU that will serve (default: onnx)",
    )
    text = "try what this machine's CPU can do with it, and publish the fastest whose masks are right"
    served.add_argument("--tune", action="store_true", help=text)
    served.add_argument("--dry-run", action="store_true", help="with --tune: show what was found, and publish nothing")
    held = parser.add_argument_group("what it is held to before it serves")
    text = "annotated images: mean IoU in PyTorch and exported"
    held.add_argument("--data", type=Path, metavar="SOURCE", help=text)
    text = "publish nothing that has a lower mean IoU on --data, in percent"
    held.add_argument("--at-least", type=float, metavar="IOU", help=text)
    text = "publish nothing that has a lower mean IoU on --data than the segmenter that serves under this name"
    held.add_argument("--not-worse", action="store_true", help=text)
    text = "publish in place of the one that serves also what failed on its own training images"
    held.add_argument("--force", action="store_true", help=text)
    access.add_options(parser)

    def add(group: Any, option: str, **facts: Any) -> None:
        group.add_argument(option, **(facts if everything else facts | {"help": argparse.SUPPRESS}))

    group = parser.add_argument_group("what it is made from")
    add(group, "--backbone", help="where the segmenter's backbone is now (default: where it was)")
    add(group, "--tiny-encoder", metavar="FOLDER_OR_ID", help="where its tiny encoder is now, likewise")
    add(group, "--encoder", choices=ENCODERS, help="refuse a segmenter made with another encoder than this")
    text = "images that int8's ranges are measured on (default: the image the segmenter was learned from)"
    add(group, "--calibration", type=Path, metavar="DIR", help=text)

    group, engine = parser.add_argument_group("TensorRT engines"), engine_builder.Options()
    text = "GPUs that an engine runs on (default: this)"
    add(group, "--hardware", choices=engine_builder.HARDWARE, default=engine.hardware, help=text)
    add(group, "--version-compatible", action="store_true", help="engines load in later minor versions too")
    text = f"batch that an engine is tuned for (default: {engine.opt_batch})"
    add(group, "--opt-batch", type=int, default=engine.opt_batch, metavar="N", help=text)

    group = parser.add_argument_group("the repository")
    text = f"versions that stay for a rollback (default: {default.keep})"
    add(group, "--keep", type=int, default=default.keep, metavar="N", help=text)
    text = f"wait for another process that is changing the repository (default: {default.wait:g})"
    add(group, "--wait", type=float, default=default.wait, metavar="SECONDS", help=text)
    return parser
