"""Teach the embedded backbone its tiny encoder: an AutoencoderTiny that gives the trained VAE's latents for less.

    python backbone/distil.py --state build/tiny-encoder --weights backbone/weights

Reads WEIGHTS/vae, writes WEIGHTS/tiny_vae, whole, at the end. Stops and resumes at any moment; on one core of a CPU it
takes about half an hour. Exit codes: 0 done, 1 failed, 130 interrupted.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from slime_backbone.arguments import positive
from slime_backbone.distillation import Recipe, distil
from slime_backbone.tiny import save_tiny
from slime_backbone.training import TrainingError
from slime_optimize.options import Parser

ROOT = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str] | None = None) -> int:
    usual = Recipe()
    parser = Parser(description=(__doc__ or "").strip().splitlines()[0])
    add = parser.add_argument
    add("--state", type=Path, default=ROOT / "build" / "tiny-encoder", help="where a stopped run goes on from")
    add("--weights", type=Path, default=ROOT / "backbone" / "weights", help="has vae/, and gets tiny_vae/")
    add("--scenes", type=positive, default=usual.scenes, help=f"scenes to draw ({usual.scenes})")
    add("--views", type=positive, default=usual.views, help=f"changed views of them ({usual.views})")
    add("--steps", type=positive, default=usual.steps, help=f"({usual.steps})")
    add("--batch", type=positive, default=usual.batch, help=f"pictures a step ({usual.batch})")
    add("--rate", type=float, default=usual.rate, help=f"peak learning rate ({usual.rate})")
    add("--seed", type=int, default=usual.seed, help="of everything random")
    add("--minutes", type=float, default=0.0, help="of training; the learning rate falls in time (0: no limit)")
    add("--threads", type=int, default=0, help="CPU threads; 0 leaves PyTorch's choice")
    add("--workers", type=int, default=0, help="processes that draw scenes; 0 is one a core")
    options = parser.parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = Recipe(
        scenes=options.scenes,
        views=options.views,
        steps=options.steps,
        batch=options.batch,
        rate=options.rate,
        seed=options.seed,
        seconds=60 * options.minutes if options.minutes else math.inf,
    )
    try:
        run = distil(options.weights, options.state, recipe, device, options.workers)
        print(save_tiny(options.weights, run, recipe))
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"error: interrupted; the same command goes on from {options.state}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
