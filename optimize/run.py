"""Learns a segmenter from one annotated image, or a few.

    python optimize/run.py --image car.png --mask car-parts.png \\
        --parts background body light plate wheel window --out segmenters/car
    python optimize/run.py --data annotated/ --validation more-annotated/ --out segmenters/car

A mask is a PNG of the image's size whose values are part indices, background 0; --data takes whole
sources of annotations. A run that was stopped goes on when its command is given again. Exit codes:
0 done, 1 the run failed, 2 something in the input or the options cannot be used, 130 interrupted.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from slime_optimize import training_image
from slime_optimize.backbone import EMBEDDED, choose_device, load_backbone
from slime_optimize.data.annotations import Annotated, Example, check_painted, check_parts, load_training, read
from slime_optimize.data.validation import Validation, hold_back
from slime_optimize.errors import InputError, exit_code, failed
from slime_optimize.files import whole, write_text
from slime_optimize.method.checkpoint import Checkpoint, State
from slime_optimize.method.train import Learned, Run, learn
from slime_optimize.options import add_settings, chosen
from slime_optimize.picture import colour_mask, overlay, sheet
from slime_optimize.presets import PRESETS, preset
from slime_optimize.report import REPORT_FILE, report_html
from slime_optimize.segmenter import JSON_FILE
from slime_optimize.settings import Settings

PREVIEW_FILE = "preview.png"
TINY_HELP = "an AutoencoderTiny for --encoder tiny, in place of the backbone's own tiny_vae"
_CELL = 256


def parser() -> argparse.ArgumentParser:
    text = (__doc__ or "").strip().splitlines()[0]
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    _add_data(made.add_argument_group("what to learn from: --image and --mask, or --data"))
    _add_validation(made.add_argument_group("which embeddings to keep: the last, or the best on validation images"))
    made.add_argument("--out", type=Path, required=True, help="folder to write the segmenter into")
    made.add_argument("--backbone", default=EMBEDDED, help="embedded, a folder in diffusers layout, or a hub id")
    made.add_argument("--tiny-encoder", metavar="FOLDER_OR_ID", help=TINY_HELP)
    made.add_argument("--preset", default="paper", choices=sorted(PRESETS), help="settings to start from")
    made.add_argument("--seed", type=int, default=0, help="of everything random")
    made.add_argument("--device", default="auto", help="auto, cpu or cuda")
    made.add_argument("--restart", action="store_true", help="begin anew where a stopped run could go on")
    made.add_argument(
        "--checkpoint-every", type=float, default=30.0, metavar="SECONDS", help="how much a stopped run loses at most"
    )
    made.add_argument("--no-report", action="store_true", help=f"no {REPORT_FILE}, which takes a few predictions")
    made.add_argument("--quiet", action="store_true", help="no progress bar")
    add_settings(made)
    return made


def _add_data(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--image", nargs="+", type=Path, help="annotated image, or several")
    group.add_argument("--mask", nargs="+", type=Path, help="its index mask (PNG), in the same order")
    group.add_argument("--data", type=Path, metavar="SOURCE", help="folder or file of annotated images")
    group.add_argument("--legend", type=Path, metavar="FILE", help="which colour is which part, for coloured masks")
    group.add_argument("--parts", nargs="+", help="part names by index, background first (with --data: its own)")


def _add_validation(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--validation", type=Path, metavar="SOURCE", help="annotated images to choose by, as --data")
    group.add_argument(
        "--no-validation",
        action="store_true",
        help="keep the last embeddings; without it, one of three or more images is held back to choose by: the last "
        "whose parts the others show too",
    )
    group.add_argument(
        "--validate-every", type=int, metavar="STEPS", help="steps between two measurements (None: a tenth of the run)"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    arguments = parser().parse_args(argv)
    checkpoint = Checkpoint(arguments.out, arguments.checkpoint_every)
    try:
        return exit_code(lambda: run(arguments, checkpoint, sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        kept = f"{checkpoint.path} is kept: the same command goes on from it" if checkpoint.path.exists() else ""
        return failed(RuntimeError(f"interrupted; {kept or 'nothing was written'}"), 130)


def run(arguments: argparse.Namespace, checkpoint: Checkpoint, command: Sequence[str]) -> None:
    """Checks the input before the backbone, which takes longer to load, then optimises and writes."""
    training = _training(arguments)
    examples, validation = _split(arguments, training)
    chosen(arguments, PRESETS[arguments.preset])
    _check_out(arguments.out)
    backbone = load_backbone(arguments.backbone, choose_device(arguments.device), tiny=arguments.tiny_encoder)
    settings = chosen(arguments, preset(arguments.preset, backbone.recommended))
    _check_tiny(arguments, settings)
    this = Run(
        backbone=backbone,
        examples=tuple(examples),
        parts=training.parts,
        settings=settings,
        seed=arguments.seed,
        preset=arguments.preset,
        validation=validation,
    )
    state = _begin(this, checkpoint, restart=arguments.restart)
    learned = learn(this, checkpoint=checkpoint, state=state, progress=not arguments.quiet)
    _write(learned, this, arguments, command)
    checkpoint.remove()
    _tell(learned, arguments.out)


def _training(arguments: argparse.Namespace) -> Annotated:
    """The images to learn from, every part painted."""
    if arguments.data is None:
        return _pairs(arguments)
    if arguments.image or arguments.mask:
        raise InputError("training data: got --data and --image or --mask, expected one or the other")
    found = read(arguments.data, arguments.parts, legend=arguments.legend)
    check_painted(found.examples, found.parts, f"data {arguments.data}")
    return found


def _pairs(arguments: argparse.Namespace) -> Annotated:
    missing = [f"--{name}" for name in ("image", "mask", "parts") if not getattr(arguments, name)]
    if missing:
        raise InputError(f"training data: got no {', '.join(missing)}, expected --image, --mask and --parts, or --data")
    parts = check_parts(arguments.parts)
    return Annotated(
        parts=parts, examples=tuple(load_training(arguments.image, arguments.mask, parts, arguments.legend))
    )


def _split(arguments: argparse.Namespace, training: Annotated) -> tuple[Sequence[Example], Validation | None]:
    """What to learn from, and what to choose by."""
    if arguments.validation and arguments.no_validation:
        raise InputError("validation: got --validation and --no-validation, expected one of them or neither")
    if arguments.validation:
        found = read(arguments.validation, training.parts, legend=arguments.legend)
        return training.examples, Validation(examples=found.examples, every=arguments.validate_every)
    examples, spared = (training.examples, None) if arguments.no_validation else hold_back(training.examples)
    if spared is None:
        return examples, None
    return examples, Validation(examples=(spared,), every=arguments.validate_every, held_back=True)


def _check_out(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder}: is a file, expected a folder to write into")


def _check_tiny(arguments: argparse.Namespace, settings: Settings) -> None:
    if arguments.tiny_encoder and settings.encoder != "tiny":
        raise InputError("tiny encoder: got --tiny-encoder with encoder vae, expected --encoder tiny beside it")


def _begin(this: Run, checkpoint: Checkpoint, *, restart: bool) -> State | None:
    """Where to begin, told when it is not the beginning."""
    if restart:
        checkpoint.remove()
    state = checkpoint.load(this.identity)
    if this.validation and this.validation.held_back:
        print(f"{this.validation.examples[0].name}: held back to choose the embeddings by", flush=True)
    if state:
        print(f"{checkpoint.path}: goes on after step {state.step} of {this.steps}", flush=True)
    return state


def _write(learned: Learned, this: Run, arguments: argparse.Namespace, command: Sequence[str]) -> None:
    learned.segmenter.save(arguments.out)
    training_image.save(arguments.out, this.examples[0].image_HW3, this.backbone.image_size)
    _save_preview(learned, this, arguments.out / PREVIEW_FILE)
    if not arguments.no_report:
        page = report_html(learned, this, ["python", "optimize/run.py", *map(shlex.quote, command)])
        write_text(arguments.out / REPORT_FILE, page)


def _save_preview(learned: Learned, this: Run, path: Path) -> None:
    segmenter, colours = learned.segmenter, learned.segmenter.colours
    rows = [
        (example.image_HW3, colour_mask(example.mask_HW, colours), overlay(example.image_HW3, mask, colours))
        for example, mask in zip(this.examples, learned.masks_HW, strict=True)
    ]
    picture = sheet(rows, ("image", "mask", "prediction"), segmenter.parts, colours, _CELL)
    with whole(path) as waiting:
        picture.save(waiting, format="PNG")


def _tell(learned: Learned, out: Path) -> None:
    metrics = learned.segmenter.metrics
    told = (
        f"{len(learned.segmenter.parts)} parts, mean IoU on the training data {metrics['training']['mean_iou']:.1f} %"
    )
    if "validation" in metrics:
        told += f", on validation {metrics['validation']['mean_iou']:.1f} % (step {metrics['step']})"
    print(f"{out / JSON_FILE}: {told}")


if __name__ == "__main__":
    sys.exit(main())
