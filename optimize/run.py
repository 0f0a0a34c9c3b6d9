"""Learns a segmenter from one annotated image, or a few.

    python optimize/run.py --image car.png --mask car-parts.png \\
        --parts background body light plate wheel window --out segmenters/car

The mask is a PNG of the image's size whose values are part indices, background 0. Exit codes:
0 done, 1 the run failed, 2 something in the input or the options cannot be used.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slime_image import ImageError
from slime_optimize.backbone import EMBEDDED, choose_device, load_backbone
from slime_optimize.data import check_parts, load_training
from slime_optimize.errors import InputError, failed
from slime_optimize.picture import colour_mask, overlay, sheet
from slime_optimize.predict import Predictor
from slime_optimize.segmenter import JSON_FILE, Segmenter
from slime_optimize.settings import CROSS_ENTROPIES, PRESETS, READOUTS, Settings, preset
from slime_optimize.train import optimise

PREVIEW_FILE = "preview.png"
_CELL = 256
_SETTINGS = (
    ("steps", int, 1, "optimisation steps, instead of epochs"),
    ("epochs", int, 1, "passes over the training images"),
    ("batch_size", int, 1, "views per step"),
    ("learning_rate", float, 1, "of Adam"),
    ("t_opt", int, 2, "range of timesteps drawn from while optimising"),
    ("t_test", int, 1, "timestep at which images are segmented"),
    ("alpha", float, 1, "weight of the WAS loss"),
    ("beta", float, 1, "weight of the diffusion loss"),
    ("threshold", float, 1, "a part whose cross map stays under it is left out"),
    ("flip", float, 1, "chance of a mirrored view"),
    ("crop", float, 2, "range of the random crop's side"),
    ("rotation", float, 1, "largest rotation, in degrees"),
    ("recolour", float, 1, "chance that a part of a view gets a random mean colour"),
    ("class_weight", float, 1, "exponent of a part's weight in the cross entropy"),
    ("readout", str, 1, f"softmax of the cross maps at test time, over {' or '.join(READOUTS)}"),
    ("cross_entropy", str, 1, f"on which maps: {' or '.join(CROSS_ENTROPIES)}"),
)


def parser() -> argparse.ArgumentParser:
    text = (__doc__ or "").strip().splitlines()[0]
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--image", nargs="+", type=Path, required=True, help="annotated image, or several")
    made.add_argument("--mask", nargs="+", type=Path, required=True, help="its index mask (PNG), in the same order")
    made.add_argument("--parts", nargs="+", required=True, help="part names by index, background first")
    made.add_argument("--out", type=Path, required=True, help="folder to write the segmenter into")
    made.add_argument("--backbone", default=EMBEDDED, help="embedded, a folder in diffusers layout, or a hub id")
    made.add_argument("--preset", default="paper", choices=sorted(PRESETS), help="settings to start from")
    made.add_argument("--seed", type=int, default=0, help="of everything random")
    made.add_argument("--device", default="auto", help="auto, cpu or cuda")
    made.add_argument("--quiet", action="store_true", help="no progress bar")
    defaults = Settings()
    group = made.add_argument_group("settings, in place of the preset's and the backbone's own")
    for name, kind, count, told in _SETTINGS:
        group.add_argument(
            f"--{name.replace('_', '-')}",
            type=kind,
            nargs=2 if count == 2 else None,
            default=argparse.SUPPRESS,
            help=f"{told} (preset paper: {getattr(defaults, name)})",
        )
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
    except KeyboardInterrupt:
        return failed(RuntimeError("interrupted; nothing was written"), 130)
    return 0


def run(arguments: argparse.Namespace) -> None:
    """Checks the input before the backbone, which takes longer to load, then optimises and writes."""
    parts = check_parts(arguments.parts)
    examples = load_training(arguments.image, arguments.mask, parts)
    changes = _changes(arguments)
    PRESETS[arguments.preset].changed(changes)
    _check_out(arguments.out)
    backbone = load_backbone(arguments.backbone, choose_device(arguments.device))
    settings = preset(arguments.preset, backbone.recommended).changed(changes)
    segmenter = optimise(
        backbone,
        examples,
        parts,
        settings,
        seed=arguments.seed,
        preset=arguments.preset,
        progress=not arguments.quiet,
    )
    segmenter.save(arguments.out)
    predictor = Predictor(segmenter, backbone)
    masks = predictor.masks([example.image_HW3 for example in examples])
    triples = [(e.image_HW3, e.mask_HW, mask) for e, mask in zip(examples, masks, strict=True)]
    _save_preview(segmenter, triples, arguments.out / PREVIEW_FILE)
    training = segmenter.metrics["training"]["mean_iou"]
    print(f"{arguments.out / JSON_FILE}: {len(parts)} parts, mean IoU on the training data {training:.1f} %")


def _changes(arguments: argparse.Namespace) -> dict[str, Any]:
    given = vars(arguments)
    return {name: given[name] for name, *_ in _SETTINGS if name in given}


def _check_out(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder}: is a file, expected a folder to write into")


def _save_preview(segmenter: Segmenter, triples: Sequence[tuple[Any, Any, Any]], path: Path) -> None:
    colours = segmenter.colours
    rows = [(image, colour_mask(truth, colours), overlay(image, mask, colours)) for image, truth, mask in triples]
    picture = sheet(rows, ("image", "mask", "prediction"), segmenter.parts, colours, _CELL)
    waiting = path.with_name(f".{path.name}.{os.getpid()}")
    picture.save(waiting, format="PNG")
    waiting.replace(path)


if __name__ == "__main__":
    sys.exit(main())
