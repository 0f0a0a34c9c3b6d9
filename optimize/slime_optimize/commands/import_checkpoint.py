"""Make a folder in diffusers layout, a backbone, of a Stable Diffusion checkpoint in one file.

    slime import-checkpoint v1-5-pruned-emaonly.safetensors backbones/sd15 --tokenizer openai/clip-vit-large-patch14
    slime optimize --backbone backbones/sd15 …

Exit codes: 0 done, 1 failed, 2 something in the input or the options cannot be used.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from slime_optimize.errors import InputError
from slime_optimize.options import Parser, run_command
from slime_optimize.single_file import SUFFIXES, VOCABULARY, convert, is_single_file
from slime_optimize.single_file_tensors import PREDICTIONS


def parser(words: Sequence[str] | None = None, prog: str | None = None) -> Parser:
    """Return the command's parser."""
    made = Parser(words, prog=prog, description=(__doc__ or "").strip().splitlines()[0])
    made.add_argument("file", type=Path, metavar="FILE", help=f"the checkpoint: {', '.join(SUFFIXES)}")
    made.add_argument("out", type=Path, metavar="OUT", help="folder to write, which is not there yet")
    made.add_argument(
        "--tokenizer",
        metavar="FOLDER_OR_HUB_ID",
        help=f"where {' and '.join(VOCABULARY)} of CLIP's tokenizer are (default: the folder tokenizer beside FILE)",
    )
    made.add_argument(
        "--prediction",
        choices=PREDICTIONS,
        help="what the UNet predicts (default: as FILE says; epsilon for 1.x)",
    )
    return made


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(parser, run, argv, prog)


def run(arguments: argparse.Namespace) -> None:
    """Check the paths, then convert."""
    file, out = arguments.file, arguments.out
    if not is_single_file(str(file)):
        what = "is not a checkpoint in one file" if file.exists() else "no such file"
        raise InputError(f"checkpoint {file}: {what}; expected one of {', '.join(SUFFIXES)}")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise InputError(f"OUT {out}: is there already; name a folder that is not")
    version = convert(file, out, tokenizer=arguments.tokenizer, prediction=arguments.prediction)
    print(f"{out}: Stable Diffusion {version} in diffusers layout; give it as --backbone {out}")
