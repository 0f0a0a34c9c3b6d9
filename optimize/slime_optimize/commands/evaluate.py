"""Measure a segmenter, or several that differ in their seed, on annotated images, in PyTorch.

    slime evaluate segmenters/car --data data/car/test --json car.json --picture car.png
    slime evaluate segmenters/car --data data/car/test --set threshold=0.1 --set edge_tolerance=0.2
    slime evaluate segmenters/car-0 segmenters/car-1 segmenters/car-2 --data data/car/test

Prints two IoUs of each part: the mean over the images that have it (the paper's), and one ratio over all pixels of the
data set; for several segmenters, mean ± standard deviation. Exit codes: 0 done, 1 failed, 2 something in the input
cannot be used.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from slime_optimize.backbone import choose_device, load_backbone
from slime_optimize.data.annotations import ignored_line
from slime_optimize.errors import InputError
from slime_optimize.evaluation import confusions, picture, read_data
from slime_optimize.files import whole, write_text
from slime_optimize.method.prediction import Predictor
from slime_optimize.metrics import Summary, report
from slime_optimize.options import SET_HELP, Parser, run_command
from slime_optimize.segmenter import Segmenter


def parser(words: Sequence[str] | None = None, prog: str | None = None) -> Parser:
    """Return the command's parser; the help shows every option where `words` ask for that."""
    made = Parser(words, prog=prog, description=(__doc__ or "").strip().splitlines()[0])
    made.add_argument("segmenters", nargs="+", type=Path, help="folders of segmenters with the same parts")
    made.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="SOURCE",
        help="annotated images, in any layout that is learned from",
    )
    made.add_argument("--legend", type=Path, metavar="FILE", help="which colour is which part, for coloured masks")
    made.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=SET_HELP)
    made.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    made.add_argument("--quiet", action="store_true", help="show no progress bar")
    output = made.add_argument_group("what to write")
    output.add_argument("--json", type=Path, help="also write the figures to this file, those of each segmenter too")
    output.add_argument("--csv", type=Path, help="also write the table to this file")
    output.add_argument("--markdown", type=Path, help="also write the table to this file")
    output.add_argument("--picture", type=Path, help="also write best, median and worst images of the first segmenter")
    more = made.add_argument_group("for researchers")
    more.add_argument("--no-was", action="store_true", help=made.more("segment from the cross-attention maps alone"))
    more.add_argument(
        "--squash", type=int, metavar="SIDE", help=made.more("measure at SIDE x SIDE (the paper's figures: 512)")
    )
    more.add_argument("--backbone", help=made.more("where the segmenters' backbone is now, if it has moved"))
    more.add_argument(
        "--tiny-encoder", metavar="FOLDER_OR_ID", help=made.more("where their tiny encoder is now, likewise")
    )
    made.add_help_all()
    return made


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(parser, run, argv, prog)


def run(arguments: argparse.Namespace) -> None:
    """Measure every segmenter on every image, print the table, and write the files that were asked for."""
    segmenters = [Segmenter.load(folder).at_test_time(arguments.set) for folder in arguments.segmenters]
    data = read_data(arguments.data, segmenters[0].parts, legend=arguments.legend, squash=arguments.squash)
    _check_parts(arguments, segmenters)
    predictors = _on_backbones(segmenters, arguments)
    with tqdm(total=len(data) * len(predictors), desc="evaluating", unit="image", disable=arguments.quiet) as bar:
        counts = [confusions(each, data, use_was=not arguments.no_was, done=bar.update) for each in predictors]
    summary = Summary(reports=tuple(report(each, data.parts) for each in counts))
    maps = "cross-attention alone" if arguments.no_was else "WAS"
    several = f", mean ± std over {len(predictors)} segmenters" if len(predictors) > 1 else ""
    if data.ignored:
        print(ignored_line(sum(data.ignored.values()), len(data.ignored), f"data {arguments.data}"), file=sys.stderr)
    print(f"{len(data)} images, masks from {maps}{several}\n{summary.table().text()}")
    if arguments.json:
        rows = zip(arguments.segmenters, segmenters, summary.reports, strict=True)
        each_one = [{"folder": str(folder), "seed": each.seed, **one.as_json()} for folder, each, one in rows]
        values = {"maps": maps, "squashed_to": arguments.squash, "set": arguments.set, **summary.as_json()}
        write_text(arguments.json, json.dumps(values | {"segmenters": each_one}, indent=2) + "\n")
    if arguments.csv:
        write_text(arguments.csv, summary.table().csv())
    if arguments.markdown:
        write_text(arguments.markdown, summary.table().markdown() + "\n")
    if arguments.picture:
        drawn = picture(predictors[0], data, counts[0], use_was=not arguments.no_was)
        with whole(arguments.picture) as waiting:
            drawn.save(waiting, format="PNG")


def _check_parts(arguments: argparse.Namespace, segmenters: Sequence[Segmenter]) -> None:
    first, *others = [", ".join(each.parts) for each in segmenters]
    for folder, names in zip(arguments.segmenters[1:], others, strict=True):
        if names != first:
            raise InputError(
                f"segmenter {folder}: its parts are {names}, those of {arguments.segmenters[0]} {first}; "
                "expected segmenters of one thing"
            )


def _on_backbones(segmenters: Sequence[Segmenter], arguments: argparse.Namespace) -> list[Predictor]:
    """Return a predictor for each segmenter; each backbone is loaded once."""
    device = choose_device(arguments.device)
    names = [(arguments.backbone or each.backbone_id, arguments.tiny_encoder or each.tiny_id) for each in segmenters]
    loaded = {(name, tiny): load_backbone(name, device, tiny=tiny) for name, tiny in dict.fromkeys(names)}
    return [Predictor(each, loaded[name]) for each, name in zip(segmenters, names, strict=True)]
