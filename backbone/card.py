"""The model card of the embedded backbone: loss curve, samples and text, from its weights and its training's state.

python backbone/card.py --state build/backbone --weights backbone/weights
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from slime_backbone.autoencoder import to_tensor
from slime_backbone.card import read_training, write_card
from slime_backbone.pictures import loss_picture, reconstructions_picture, samples_picture
from slime_backbone.samples import GUIDANCE, PROMPTS, SEED, STEPS, decode, sample
from slime_backbone.scene import COUNTS, KINDS, scene
from slime_backbone.training import TrainingError
from slime_backbone.words import found_by_words
from slime_optimize.backbone import Backbone, load_backbone
from slime_optimize.errors import BackboneError
from slime_optimize.options import Parser

ROOT = Path(__file__).resolve().parents[1]
SHOWN = 2  # validation scenes of every class in reconstructions.png


def main(argv: Sequence[str] | None = None) -> int:
    options = _arguments(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        _write(options)
    except (TrainingError, BackboneError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(options.out / "card.md")
    return 0


def _write(options: argparse.Namespace) -> None:
    vae, diffusion = (read_training(options.state, name) for name in ("vae", "diffusion"))
    backbone = load_backbone(str(options.weights.resolve()))
    loss_picture(diffusion.history, options.out / "loss.png")
    prompts = PROMPTS[: options.prompts]
    images = sample(backbone, prompts, steps=options.steps, guidance=options.guidance, seed=options.seed)
    samples_picture(images, prompts, options.out / "samples.png")
    originals, rebuilt = _reconstructions(backbone)
    reconstructions_picture(originals, rebuilt, options.out / "reconstructions.png")
    write_card(
        options.out / "card.md",
        backbone=backbone,
        weights=options.weights,
        vae=vae,
        diffusion=diffusion,
        words=found_by_words(backbone, options.scenes),
        vae_error=float(np.abs(originals.astype(float) - rebuilt).mean()),
        sampling=f"DDIM, {options.steps} steps, guidance {options.guidance:g}, seed {options.seed}; chosen by nobody.",
        ran_on=options.ran_on,
    )


def _reconstructions(backbone: Backbone) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    originals = np.stack([scene(kind, "validation", i).image for kind in KINDS for i in range(SHOWN)])
    with torch.no_grad():
        return originals, decode(backbone, backbone.encode(to_tensor(originals)))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--state", type=Path, default=ROOT / "build" / "backbone", help="the training's state")
    add("--weights", type=Path, default=ROOT / "backbone" / "weights", help="the diffusers folder made from it")
    add("--out", type=Path, default=ROOT / "docs" / "backbone", help="folder of card.md and its pictures")
    add("--steps", type=int, default=STEPS, help="of the sampler")
    add("--guidance", type=float, default=GUIDANCE)
    add("--seed", type=int, default=SEED)
    add("--scenes", type=int, default=COUNTS["validation"], help="of every class, to measure what words find")
    add("--prompts", type=int, default=len(PROMPTS), help="how many of the prompts")
    add("--ran-on", default="device not recorded", help="what trained the steps whose device the state does not record")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
