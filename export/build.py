"""Exports a segmenter to ONNX, proves it equal to PyTorch, and publishes it into a Triton model repository.

python export/build.py DIR --repository REPO [--name NAME] [--url HOST:PORT]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from slime_export import access
from slime_export.errors import BusyError, EngineError, ExportError, ParityError, ServerError
from slime_export.pipeline import Request, export
from slime_image import ImageError
from slime_optimize.errors import InputError
from slime_was.form import MAPS, Form


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, 1 where something failed (parity, server, disk), 2 for input that cannot be used."""
    arguments = _parser().parse_args(argv)
    try:
        request = _request(arguments)
        published, _ = export(request, say=lambda line: print(line, flush=True))
    except (InputError, ExportError, ImageError) as error:
        return _failed(error, 2)
    except (BusyError, EngineError, ParityError, ServerError, OSError) as error:
        return _failed(error, 1)
    print(f"published {published.name} version {published.version} in {request.repository}")
    return 0


def _request(arguments: argparse.Namespace) -> Request:
    given = dict(vars(arguments))
    words = {each.name: given.pop(each.name) for each in fields(Form) if each.name in given}
    return Request(form=Form(**words), access=access.taken(given), **given)


def _failed(error: Exception, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="export/build.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="segmenter written by optimize/run.py")
    parser.add_argument("--repository", type=Path, required=True, metavar="REPO", help="made if it is not there")
    parser.add_argument("--name", default=Request.name, help="name to serve it under (default: the folder's)")
    parser.add_argument("--backbone", help="where the segmenter's backbone is now (default: where it was)")
    parser.add_argument("--tiny-encoder", metavar="FOLDER_OR_ID", help="where its tiny encoder is now, likewise")
    parser.add_argument(
        "--keep",
        type=int,
        default=Request.keep,
        metavar="N",
        help=f"versions that stay for a rollback ({Request.keep})",
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=Request.wait,
        metavar="SECONDS",
        help=f"for another process that is changing the repository ({Request.wait:g})",
    )
    parser.add_argument(
        "--maps",
        choices=MAPS,
        default=Form.maps,
        help="averaged: Python weights the maps; weighted: the UNet does, without an N x N map (default: averaged)",
    )
    access.add_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
