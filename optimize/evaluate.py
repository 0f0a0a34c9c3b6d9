"""Measures a segmenter, or several that differ in their seed, on annotated images, in PyTorch.

    python optimize/evaluate.py segmenters/car --data data/car/test --json car.json --picture car.png
    python optimize/evaluate.py segmenters/car-0 segmenters/car-1 segmenters/car-2 --data data/car/test

Both IoUs are told, of each part: the mean over the images that have it (the paper's), and over all pixels of the
data set; of several segmenters as mean ± standard deviation. Exit codes: 0 done, 1 failed, 2 something in the
input cannot be used.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from slime_optimize.backbone import choose_device, load_backbone
from slime_optimize.errors import InputError, exit_code
from slime_optimize.evaluation import Data, confusions, picture, read_data
from slime_optimize.files import whole, write_text
from slime_optimize.method.predict import Predictor
from slime_optimize.metrics import Summary, report
from slime_optimize.segmenter import Segmenter


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    made.add_argument("segmenters", nargs="+", type=Path, help="folders written by optimize/run.py, of one thing")
    made.add_argument(
        "--data", type=Path, required=True, metavar="SOURCE", help="annotated images, in any form optimize/run.py reads"
    )
    made.add_argument("--legend", type=Path, metavar="FILE", help="which colour is which part, for coloured masks")
    made.add_argument("--no-was", action="store_true", help="segment from the cross-attention maps alone")
    made.add_argument("--squash", type=int, metavar="SIDE", help="measure at SIDE x SIDE (the paper's figures: 512)")
    made.add_argument("--json", type=Path, help="also write the figures to this file, those of each segmenter too")
    made.add_argument("--csv", type=Path, help="also write the table to this file")
    made.add_argument("--markdown", type=Path, help="also write the table to this file")
    made.add_argument("--picture", type=Path, help="also write best, median and worst images of the first segmenter")
    made.add_argument("--backbone", help="where the segmenters' backbone is now, if it has moved")
    made.add_argument("--tiny-encoder", metavar="FOLDER_OR_ID", help="where their tiny encoder is now, likewise")
    made.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    made.add_argument("--quiet", action="store_true", help="no progress bar")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    arguments = parser().parse_args(argv)
    return exit_code(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    segmenters = [Segmenter.load(folder) for folder in arguments.segmenters]
    data = read_data(arguments.data, segmenters[0].parts, legend=arguments.legend, squash=arguments.squash)
    _check_parts(arguments, data, segmenters)
    predictors = _on_backbones(segmenters, arguments)
    with tqdm(total=len(data) * len(predictors), desc="evaluating", unit="image", disable=arguments.quiet) as bar:
        counts = [confusions(each, data, use_was=not arguments.no_was, done=bar.update) for each in predictors]
    summary = Summary(reports=tuple(report(each, data.parts) for each in counts))
    maps = "cross-attention alone" if arguments.no_was else "WAS"
    several = f", mean ± std over {len(predictors)} segmenters" if len(predictors) > 1 else ""
    print(f"{len(data)} images, masks from {maps}{several}\n{summary.table().text()}")
    if arguments.json:
        values = {"maps": maps, "squashed_to": arguments.squash, **summary.as_json()}
        values["segmenters"] = _each(arguments.segmenters, segmenters, summary)
        write_text(arguments.json, json.dumps(values, indent=2) + "\n")
    if arguments.csv:
        write_text(arguments.csv, summary.table().csv())
    if arguments.markdown:
        write_text(arguments.markdown, summary.table().markdown() + "\n")
    if arguments.picture:
        drawn = picture(predictors[0], data, counts[0], use_was=not arguments.no_was)
        with whole(arguments.picture) as waiting:
            drawn.save(waiting, format="PNG")


def _check_parts(arguments: argparse.Namespace, data: Data, segmenters: Sequence[Segmenter]) -> None:
    first, *others = [", ".join(each.parts) for each in segmenters]
    for folder, names in zip(arguments.segmenters[1:], others, strict=True):
        if names != first:
            raise InputError(
                f"segmenter {folder}: its parts are {names}, those of {arguments.segmenters[0]} {first}; "
                "expected segmenters of one thing"
            )
    if data.parts != segmenters[0].parts:
        raise InputError(
            f"data {arguments.data}: its parts are {', '.join(data.parts)}, "
            f"the segmenter's {first}; expected the same, in the same order"
        )


def _on_backbones(segmenters: Sequence[Segmenter], arguments: argparse.Namespace) -> list[Predictor]:
    """Each backbone is loaded once."""
    device = choose_device(arguments.device)
    names = [(arguments.backbone or each.backbone_id, arguments.tiny_encoder or each.tiny_id) for each in segmenters]
    loaded = {(name, tiny): load_backbone(name, device, tiny=tiny) for name, tiny in dict.fromkeys(names)}
    return [Predictor(each, loaded[name]) for each, name in zip(segmenters, names, strict=True)]


def _each(folders: Sequence[Path], segmenters: Sequence[Segmenter], summary: Summary) -> list[dict[str, Any]]:
    rows = zip(folders, segmenters, summary.reports, strict=True)
    return [{"folder": str(folder), "seed": each.seed, **told.as_json()} for folder, each, told in rows]


if __name__ == "__main__":
    sys.exit(main())
