"""Measures a segmenter on annotated images, in PyTorch.

    python optimize/evaluate.py segmenters/car --data scenes/car/test --json car.json

The data folder holds images/NAME.png, masks/NAME.png and parts.json, the list of part names.
Exit codes: 0 done, 1 failed, 2 something in the input cannot be used.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from slime_image import ImageError
from slime_optimize.backbone import choose_device
from slime_optimize.data import dataset, load_example
from slime_optimize.errors import InputError, failed
from slime_optimize.metrics import Ints, Report, confusion, report
from slime_optimize.predict import Predictor, load_predictor


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    made.add_argument("segmenter", type=Path, help="folder written by optimize/run.py")
    made.add_argument("--data", type=Path, required=True, help="folder of images/, masks/ and parts.json")
    made.add_argument("--no-was", action="store_true", help="segment from the cross-attention maps alone")
    made.add_argument("--json", type=Path, help="also write the figures to this file")
    made.add_argument("--backbone", help="where the segmenter's backbone is now, if it has moved")
    made.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    made.add_argument("--quiet", action="store_true", help="no progress bar")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    arguments = parser().parse_args(argv)
    try:
        run(arguments)
    except (InputError, ImageError) as error:
        return failed(error, 2)
    except (RuntimeError, OSError) as error:
        return failed(error, 1)
    return 0


def run(arguments: argparse.Namespace) -> None:
    parts, pairs = dataset(arguments.data)
    predictor = load_predictor(arguments.segmenter, choose_device(arguments.device), arguments.backbone)
    if predictor.segmenter.parts != parts:
        raise InputError(
            f"data {arguments.data}: its parts are {', '.join(parts)}, "
            f"the segmenter's {', '.join(predictor.segmenter.parts)}; expected the same, in the same order"
        )
    result = evaluate(predictor, pairs, use_was=not arguments.no_was, progress=not arguments.quiet)
    maps = "cross-attention alone" if arguments.no_was else "WAS"
    print(f"{result.images} images, masks from {maps}\n{result.table()}")
    if arguments.json:
        _write(arguments.json, {"maps": maps, **result.as_json()})


def evaluate(
    predictor: Predictor, pairs: Sequence[tuple[Path, Path]], *, use_was: bool = True, progress: bool = True
) -> Report:
    """IoU of the predictor over (image, mask) files, each at the image's own size."""
    parts = predictor.segmenter.parts
    counts: list[Ints] = []
    with tqdm(total=len(pairs), desc="evaluating", unit="image", disable=not progress) as bar:
        size = predictor.batch_size
        for start in range(0, len(pairs), size):
            examples = [load_example(image, mask, parts) for image, mask in pairs[start : start + size]]
            masks = predictor.masks([example.image_HW3 for example in examples], use_was=use_was)
            both = zip(examples, masks, strict=True)
            counts += [confusion(example.mask_HW, mask, len(parts)) for example, mask in both]
            bar.update(len(examples))
    return report(counts, parts)


def _write(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    waiting = path.with_name(f".{path.name}.{os.getpid()}")
    waiting.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    waiting.replace(path)


if __name__ == "__main__":
    sys.exit(main())
