"""Bring a data set, as it is distributed, into images/, masks/ and parts.json by the paper's protocol.

    slime prepare pascal-part downloads/pascal --kind car --split val --out data/car/test
    slime prepare celebamask downloads/CelebAMask-HQ --split test --out data/face/test
    slime prepare published downloads/slime-data/car --kind car --split test --out data/car/test

docs/datasets.md says what each set is, and which rules are applied. Exit codes: 0 done, 1 failed, 2 something in the
input cannot be used.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from slime_optimize.data.datasets import Plan, celebamask, pascal_part, prepare, published
from slime_optimize.errors import InputError, exit_code
from slime_optimize.options import Parser


def parser(prog: str | None = None) -> Parser:
    """Return the command's parser, with a sub-command for each data set."""
    made = Parser(prog=prog, description=(__doc__ or "").strip().splitlines()[0])
    sets = made.add_subparsers(dest="dataset", required=True)
    pascal = sets.add_parser("pascal-part", help="PASCAL-Part's Annotations_Part and VOC 2010's images")
    pascal.add_argument("--kind", choices=("car", "horse"), required=True, help="class of the objects to crop")
    pascal.add_argument("--images", type=Path, help="VOC 2010's JPEGImages, when it is not below SOURCE")
    _add_common(pascal, "train, val or trainval of VOC 2010, or a file of image names (default: all annotations)")
    faces = sets.add_parser("celebamask", help="CelebAMask-HQ")
    _add_common(faces, "train, val or test of CelebA's partition, or a file of image names (default: all images)")
    layout = sets.add_parser("published", help="NAME.png beside NAME.npy, as the published code reads them")
    layout.add_argument("--kind", choices=("car", "horse", "face"), help="what the numbers mean; or give --parts")
    _add_common(layout, "sub-folder, such as train_1 (default: SOURCE itself)")
    return made


def _add_common(made: argparse.ArgumentParser, split: str) -> None:
    made.add_argument("source", type=Path, metavar="SOURCE", help="folder the data set was unpacked into")
    made.add_argument("--out", type=Path, required=True, help="folder to write, which does not exist yet")
    made.add_argument("--split", help=split)
    made.add_argument("--parts", nargs="+", help="these parts in this order, background first; others are background")
    made.add_argument("--quiet", action="store_true", help="show no progress bar")


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = parser(prog).parse_args(argv)
    return exit_code(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Read the data set, write the folder, and print how many images it has and how many were left out."""
    if not arguments.source.is_dir():
        raise InputError(f"data {arguments.source}: no such folder, expected the data set, unpacked")
    done = prepare(_plan(arguments), arguments.out, progress=not arguments.quiet)
    left_out = "".join(f"; {count} {reason}" for reason, count in done.left_out.items())
    print(f"{arguments.out}: {done.images} images{left_out}")


def _plan(arguments: argparse.Namespace) -> Plan:
    source, split, parts = arguments.source, arguments.split, arguments.parts
    if arguments.dataset == "pascal-part":
        return pascal_part(source, arguments.kind, split=split, images=arguments.images, parts=parts)
    if arguments.dataset == "celebamask":
        return celebamask(source, split=split, parts=parts)
    return published(source, arguments.kind, split=split, parts=parts)
