"""Brings a data set, as it is distributed, into images/, masks/ and parts.json by the paper's protocol.

    python optimize/prepare.py pascal-part downloads/pascal --kind car --split val --out data/car/test
    python optimize/prepare.py celebamask downloads/CelebAMask-HQ --split test --out data/face/test
    python optimize/prepare.py published downloads/slime-data/car --kind car --split test --out data/car/test

docs/datasets.md says what each set is, and which rules are applied. Exit codes: 0 done, 1 failed, 2 something in
the input cannot be used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from slime_optimize.data.datasets import Plan, celebamask, pascal_part, prepare, published
from slime_optimize.errors import InputError, exit_code


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    sets = made.add_subparsers(dest="dataset", required=True)
    pascal = sets.add_parser("pascal-part", help="PASCAL-Part's Annotations_Part and VOC 2010's images")
    pascal.add_argument("--kind", choices=("car", "horse"), required=True, help="of the objects to crop")
    pascal.add_argument("--images", type=Path, help="VOC 2010's JPEGImages, when it is not below SOURCE")
    _add_common(pascal, "train, val or trainval of VOC 2010, or a file of image names (default: all annotations)")
    faces = sets.add_parser("celebamask", help="CelebAMask-HQ")
    _add_common(faces, "train, val or test of CelebA's partition, or a file of image names (default: all images)")
    layout = sets.add_parser("published", help="NAME.png beside NAME.npy, as the published code reads them")
    layout.add_argument("--kind", choices=("car", "horse", "face"), help="what the numbers mean; or --parts")
    _add_common(layout, "sub-folder, such as train_1 (default: SOURCE itself)")
    return made


def _add_common(made: argparse.ArgumentParser, split: str) -> None:
    made.add_argument("source", type=Path, metavar="SOURCE", help="folder the data set was unpacked into")
    made.add_argument("--out", type=Path, required=True, help="folder to write, which is not there yet")
    made.add_argument("--split", help=split)
    made.add_argument("--parts", nargs="+", help="these parts in this order, background first; others are background")
    made.add_argument("--quiet", action="store_true", help="no progress bar")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    arguments = parser().parse_args(argv)
    return exit_code(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    if not arguments.source.is_dir():
        raise InputError(f"data {arguments.source}: no such folder, expected the data set, unpacked")
    done = prepare(_plan(arguments), arguments.out, progress=not arguments.quiet)
    told = "".join(f"; {count} {reason}" for reason, count in done.left_out.items())
    print(f"{arguments.out}: {done.images} images{told}")


def _plan(arguments: argparse.Namespace) -> Plan:
    source, split, parts = arguments.source, arguments.split, arguments.parts
    if arguments.dataset == "pascal-part":
        return pascal_part(source, arguments.kind, split=split, images=arguments.images, parts=parts)
    if arguments.dataset == "celebamask":
        return celebamask(source, split=split, parts=parts)
    return published(source, arguments.kind, split=split, parts=parts)


if __name__ == "__main__":
    sys.exit(main())
