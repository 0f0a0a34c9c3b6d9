"""Exports a segmenter to ONNX, or TensorRT, proves it equal to PyTorch, and publishes it into a model repository.

python export/build.py DIR --repository REPO [--name NAME] [--url HOST:PORT] [--maps weighted] [--precision fp16] …
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from slime_client import SegmenterError, access
from slime_export.errors import BusyError, EngineError, ParityError, ServerError
from slime_export.graph import accelerators
from slime_export.graph import engine_builder as tensorrt
from slime_export.options import EMBEDDINGS, ExportOptions
from slime_export.pipeline import export
from slime_export.room import disk_line
from slime_image import ImageError
from slime_optimize.errors import InputError, failed
from slime_repository.errors import RepositoryError
from slime_repository.variant import ENCODERS, FORMATS, MAPS, PRECISIONS


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, 1 where something failed (parity, server, disk), 2 for input that cannot be used."""
    arguments = _parser().parse_args(argv)
    try:
        request = _request(arguments)
        published, _ = export(request, say=lambda line: print(line, flush=True))
    except (InputError, RepositoryError, ImageError, SegmenterError) as error:
        return failed(error, 2)
    except OSError as error:
        return failed(OSError(disk_line(error)), 1)
    except (BusyError, EngineError, ParityError, ServerError) as error:
        return failed(error, 1)
    print(f"published {published.name} version {published.version} in {request.repository}")
    return 0


def _request(arguments: argparse.Namespace) -> ExportOptions:
    given = dict(vars(arguments))
    engine = tensorrt.Options(**{name: given.pop(name) for name in ("hardware", "version_compatible", "opt_batch")})
    return ExportOptions(engine=engine, access=access.taken(given), **given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="export/build.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="segmenter written by optimize/run.py")
    parser.add_argument("--repository", type=Path, required=True, metavar="REPO", help="made if it is not there")
    parser.add_argument("--name", default=ExportOptions.name, help="name to serve it under (default: the folder's)")
    parser.add_argument("--backbone", help="where the segmenter's backbone is now (default: where it was)")
    parser.add_argument("--tiny-encoder", metavar="FOLDER_OR_ID", help="where its tiny encoder is now, likewise")
    _add_form(parser)
    _add_gpu(parser)
    _add_repository(parser)
    parser.add_argument("--url", metavar="HOST:PORT", help="gRPC endpoint of a running server that is to follow")
    access.add_options(parser)
    return parser


def _add_form(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is served")
    group.add_argument(
        "--embedding",
        choices=EMBEDDINGS,
        default=ExportOptions.embedding,
        help="baked: a UNet for each segmenter; shared: one UNet for many, each a file of its own (default: baked)",
    )
    group.add_argument(
        "--maps",
        choices=MAPS,
        default=ExportOptions.maps,
        help="averaged: Python weights them; weighted: the UNet does, without an N x N map (default: averaged)",
    )
    group.add_argument(
        "--precision", choices=PRECISIONS, default=ExportOptions.precision, help="(default: fp32, exact)"
    )
    group.add_argument(
        "--encoder", choices=ENCODERS, help="refuse a segmenter made with another (default: the one it was made with)"
    )
    group.add_argument(
        "--calibration",
        type=Path,
        metavar="DIR",
        help="images that int8's ranges are measured on (default: the image the segmenter was learned from)",
    )
    group.add_argument(
        "--evaluate", type=Path, metavar="DATA", help="annotated images: mean IoU before and after, which is held to"
    )


def _add_gpu(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "for a machine", "TensorRT engines are built on the kind of GPU that will serve them"
    )
    group.add_argument("--format", choices=FORMATS, default=ExportOptions.format, help="(default: onnx)")
    group.add_argument("--accelerator", choices=accelerators.KINDS, help="ONNX Runtime's provider on the server")
    usual = tensorrt.Options()
    group.add_argument("--hardware", choices=tensorrt.HARDWARE, default=usual.hardware, help="GPUs an engine runs on")
    group.add_argument("--version-compatible", action="store_true", help="engines load in later minor versions too")
    group.add_argument("--opt-batch", type=int, default=usual.opt_batch, help="what an engine is tuned for (1)")


def _add_repository(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--keep",
        type=int,
        default=ExportOptions.keep,
        metavar="N",
        help=f"versions that stay for a rollback ({ExportOptions.keep})",
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=ExportOptions.wait,
        metavar="SECONDS",
        help=f"for another process that is changing the repository ({ExportOptions.wait:g})",
    )


if __name__ == "__main__":
    sys.exit(main())
