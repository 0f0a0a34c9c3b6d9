"""Learn a segmenter from one annotated image, or from a few.

    slime optimize --image car.png --mask car-parts.png \\
        --parts background body light plate wheel window --out segmenters/car
    slime optimize --data annotated/ --validation more-annotated/ --out segmenters/car

A mask is a PNG of the image's size whose values are part indices, background 0; --data reads whole folders and files of
annotations. A run that was stopped continues when its command is given again. Exit codes: 0 done, 1 the run failed,
2 something in the input or the options cannot be used, 130 interrupted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from slime_optimize import training_image
from slime_optimize.backbone import EMBEDDED, choose_device, load_backbone
from slime_optimize.commands import messages
from slime_optimize.data.annotations import (
    Annotated,
    Example,
    check_painted,
    check_parts,
    load_legend,
    load_training,
    read,
    read_parts,
)
from slime_optimize.data.validation import Validation, hold_back
from slime_optimize.errors import InputError, exit_code, failed
from slime_optimize.files import whole, write_text
from slime_optimize.method.checkpoint import Checkpoint
from slime_optimize.method.precision import ASKED, AUTO, decide, measured
from slime_optimize.method.run import Begin, Run, first_step
from slime_optimize.method.training import Learned, Trainer, learn
from slime_optimize.options import Parser, add_settings, chosen
from slime_optimize.picture import colour_mask, overlay, sheet
from slime_optimize.presets import FALLBACK, PRESETS, chosen_preset, preset
from slime_optimize.report import REPORT_FILE, report_html
from slime_optimize.segmenter import JSON_FILE, WEIGHTS_FILE, Segmenter
from slime_optimize.settings import Settings
from slime_optimize.verdict import verdict

PREVIEW_FILE = "preview.png"
ON_SHARE = 3  # learning on takes a third of the steps, unless they are given
_CELL = 256  # side of a picture in the preview, in pixels


def parser(words: Sequence[str] | None = None, prog: str | None = None) -> Parser:
    """Return the command's parser; the help shows every option where `words` ask for that."""
    made = Parser(words, prog=prog, description=(__doc__ or "").strip().splitlines()[0])
    data = made.add_argument_group("what to learn from: --image, --mask and --parts, or --data")
    data.add_argument("--image", nargs="+", type=Path, help="annotated image, or several")
    data.add_argument("--mask", nargs="+", type=Path, help="index mask (PNG) of each image, in the same order")
    data.add_argument("--parts", nargs="+", help="part names by index, background first (with --data: its own)")
    data.add_argument("--data", type=Path, metavar="SOURCE", help="folder or file of annotated images")
    data.add_argument("--legend", type=Path, metavar="FILE", help="which colour is which part, for coloured masks")
    run = made.add_argument_group("the run")
    run.add_argument("--out", type=Path, required=True, help="folder to write the segmenter into")
    run.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        help="settings to start from (default: what the backbone's slime.json names, best for the embedded one; else "
        f"{FALLBACK})",
    )
    run.add_argument(
        "--backbone",
        default=EMBEDDED,
        help="embedded, a folder in diffusers layout, a .safetensors or .ckpt, or a hub id, also as ID@REVISION "
        "(default: %(default)s)",
    )
    run.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default: %(default)s)")
    run.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    run.add_argument(
        "--begin",
        type=Path,
        metavar="SEGMENTER",
        help="start from the embeddings of this segmenter, of the same parts and backbone, as after correcting a mask; "
        "takes a third of the steps unless they are given",
    )
    run.add_argument(
        "--precision",
        choices=ASKED,
        default=AUTO,
        help="that the UNet computes in while it learns; auto: bf16 where the processor has AMX and a measured step "
        "is shorter, else fp32 (default: %(default)s)",
    )
    run.add_argument("--restart", action="store_true", help="begin anew where a stopped run could continue")
    run.add_argument("--no-report", action="store_true", help=f"do not write {REPORT_FILE}")
    run.add_argument("--quiet", action="store_true", help="show no progress bar")
    run.add_argument(
        "--tiny-encoder",
        metavar="FOLDER_OR_ID",
        help=made.more("the AutoencoderTiny for --encoder tiny, in place of the backbone's own tiny_vae"),
    )
    run.add_argument(
        "--checkpoint-every",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help=made.more("time between two checkpoints: what a stopped run loses at most (default: %(default)s)"),
    )
    validation = made.add_argument_group("which embeddings to keep: the last, or the best on validation images")
    validation.add_argument("--validation", type=Path, metavar="SOURCE", help="annotated images to choose by")
    validation.add_argument(
        "--no-validation",
        action="store_true",
        help="keep the last embeddings; without it, one of three or more images is held back to choose by: the last "
        "whose parts the others show too",
    )
    validation.add_argument(
        "--validate-every",
        type=int,
        metavar="STEPS",
        help=made.more("steps between two measurements (default: a tenth of the run)"),
    )
    add_settings(made)
    return made


def main(
    argv: Sequence[str] | None = None,
    prog: str | None = None,
    watch: Callable[[Trainer], object] = lambda trainer: None,
) -> int:
    """Run the command and return its exit code; `watch` is called after each step."""
    words = sys.argv[1:] if argv is None else argv
    arguments = parser(words, prog).parse_args(words)
    checkpoint = Checkpoint(arguments.out, arguments.checkpoint_every)
    command = shlex.join([*(prog or "python optimize/run.py").split(), *words])
    try:
        return exit_code(lambda: run(arguments, checkpoint, command, watch))
    except KeyboardInterrupt:
        kept = f"{checkpoint.path} is kept: the same command goes on from it" if checkpoint.path.exists() else ""
        return failed(RuntimeError(f"interrupted; {kept or 'nothing was written'}"), 130)


def run(
    arguments: argparse.Namespace, checkpoint: Checkpoint, command: str, watch: Callable[[Trainer], object]
) -> None:
    """Check the input before the backbone, which takes longer to load; then optimise and write."""
    training = _training(arguments)
    examples, validation = _split(arguments, training)
    chosen(arguments, PRESETS[arguments.preset] if arguments.preset else Settings())
    out: Path = arguments.out
    _check_out(out)
    begin = Begin(segmenter=Segmenter.load(arguments.begin), folder=str(arguments.begin)) if arguments.begin else None
    backbone = load_backbone(arguments.backbone, choose_device(arguments.device), tiny=arguments.tiny_encoder)
    name, source = chosen_preset(arguments.preset, backbone.recommended)
    settings = chosen(arguments, preset(name, backbone.recommended))
    if begin and not {"steps", "epochs"} & vars(arguments).keys():
        settings = settings.changed({"steps": -(-settings.total_steps(len(examples)) // ON_SHARE)})
    if arguments.tiny_encoder and settings.encoder != "tiny":
        raise InputError("tiny encoder: got --tiny-encoder with encoder vae, expected --encoder tiny beside it")
    this = Run(
        backbone=backbone,
        examples=tuple(examples),
        parts=training.parts,
        settings=settings,
        seed=arguments.seed,
        preset=name,
        preset_from=source,
        validation=validation,
        begin=begin,
    )
    asked = {} if arguments.precision == AUTO else {"precision": arguments.precision}
    made_from = hashlib.sha256(json.dumps({**this.identity, **asked}, sort_keys=True).encode()).hexdigest()
    if arguments.restart:
        checkpoint.remove()
    elif not checkpoint.path.exists() and _finished(out) == made_from:
        print(f"{out / JSON_FILE}: this run has finished already; add --restart to learn it anew")
        return
    decision = decide(arguments.precision, backbone.device, checkpoint.precision())
    if decision:
        this = this.computing_in(decision)
    state = checkpoint.load(this.identity)
    if validation and validation.held_back:
        print(f"{validation.examples[0].name}: held back to choose the embeddings by", flush=True)
    print(messages.plan(this, out), flush=True)
    if decision is None:
        this = this.computing_in(measured(arguments.precision, first_step(this)))
        print(f"precision {this.precision}: {this.precision_from}", flush=True)
    if state:
        print(f"{checkpoint.path}: goes on after step {state.step} of {this.steps}", flush=True)
    clock = messages.Clock()

    def stepped(trainer: Trainer) -> None:
        clock.step(trainer.left)
        watch(trainer)

    learned = learn(this, checkpoint=checkpoint, state=state, progress=not arguments.quiet, stepped=stepped)
    metrics = {**learned.segmenter.metrics, "made_from": made_from}
    replace(learned.segmenter, metrics=metrics).save(out)
    training_image.save(out, this.examples[0].image_HW3, backbone.image_size)
    _save_preview(learned, this, out / PREVIEW_FILE)
    (out / REPORT_FILE).unlink(missing_ok=True)  # of other weights
    if not arguments.no_report:
        write_text(out / REPORT_FILE, report_html(learned, this, out.resolve().name, command))
    checkpoint.remove()
    print("\n".join([f"{out / JSON_FILE}: {messages.summary(learned)}", *verdict(learned, this).lines()]))


def _check_out(out: Path) -> None:
    """Raise InputError where the results cannot be written, which would else be seen after the run."""
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise InputError(
            f"--out {out}: {'is' if there == out else f'{there} is'} a file, expected a folder to write into"
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(
            f"--out {out}: nothing can be written into {there}; give another folder, or the right to write"
        )


def _finished(out: Path) -> str | None:
    """Return what the finished segmenter in the folder was made from; None without one."""
    try:
        found = json.loads((out / JSON_FILE).read_text(encoding="utf-8"))["metrics"].get("made_from")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return found if (out / WEIGHTS_FILE).is_file() else None


def _training(arguments: argparse.Namespace) -> Annotated:
    """Return the images to learn from; InputError unless every part is painted in one of them."""
    if arguments.data is None:
        missing = [f"--{name}" for name in ("image", "mask") if not getattr(arguments, name)]
        if missing:
            missing += [] if arguments.parts or arguments.legend else ["--parts"]
            raise InputError(
                f"training data: got no {', '.join(missing)}, expected --image, --mask and --parts, or --data"
            )
        beside = arguments.mask[0].parent
        own = load_legend(arguments.legend).parts if arguments.legend else read_parts(beside)
        if not (arguments.parts or own):
            raise InputError(
                f"training data: nothing names the parts, expected --parts, --legend, or parts.json in {beside}; "
                "name them by the numbers in the mask, background first"
            )
        parts = check_parts(arguments.parts or own or ())
        examples = load_training(arguments.image, arguments.mask, parts, arguments.legend)
        return Annotated(parts=parts, examples=tuple(examples))
    if arguments.image or arguments.mask:
        raise InputError("training data: got --data and --image or --mask, expected one or the other")
    found = read(arguments.data, arguments.parts, legend=arguments.legend)
    check_painted(found, f"data {arguments.data}")
    return found


def _split(arguments: argparse.Namespace, training: Annotated) -> tuple[Sequence[Example], Validation | None]:
    """Return the images to learn from, and those to choose embeddings by."""
    if arguments.validation and arguments.no_validation:
        raise InputError("validation: got --validation and --no-validation, expected one of them or neither")
    if arguments.validation:
        found = read(arguments.validation, training.parts, legend=arguments.legend)
        return training.examples, Validation(examples=found.examples, every=arguments.validate_every)
    examples, spared = (training.examples, None) if arguments.no_validation else hold_back(training.examples)
    if spared is None:
        return examples, None
    return examples, Validation(examples=(spared,), every=arguments.validate_every, held_back=True)


def _save_preview(learned: Learned, this: Run, path: Path) -> None:
    segmenter, colours = learned.segmenter, learned.segmenter.colours
    rows = [
        (example.image_HW3, colour_mask(example.mask_HW, colours), overlay(example.image_HW3, mask, colours))
        for example, mask in zip(this.examples, learned.masks_HW, strict=True)
    ]
    picture = sheet(rows, ("image", "mask", "prediction"), segmenter.parts, colours, _CELL)
    with whole(path) as waiting:
        picture.save(waiting, format="PNG")
