"""Train the embedded backbone from nothing but PartScenes' images and captions.

    python backbone/train.py --state build/backbone --out backbone/weights
    torchrun --nproc-per-node 2 backbone/train.py ...      (a process a core, or a GPU)
    python backbone/train.py --unpack SHARDS --no-train    (weights from shards fetched from elsewhere)

Stops and resumes at any moment; raising --steps goes on from the last state.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch

from slime_backbone.arguments import number, positive
from slime_backbone.autoencoder import encode_all, train_vae
from slime_backbone.corpus import corpus
from slime_backbone.diffusion import Recipe, train_diffusion
from slime_backbone.models import build_scheduler, build_tokenizer
from slime_backbone.saving import begin, pipeline_of, save_pipeline, write_record
from slime_backbone.shards import ShardError, pack, unpack
from slime_backbone.training import TrainingError, first_then_others, share
from slime_optimize.options import Parser

HERE = Path(__file__).resolve().parent
VAE_SHARE = 0.25  # of --minutes, at most


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How much to train where nothing is said."""

    scenes: int = 12_000
    vae_steps: int = 1_000
    steps: int = 4_000

    @classmethod
    def for_device(cls, device: torch.device) -> Amount:
        """Return what suits the device; a GPU gets more than it has time for, and --minutes ends its run."""
        return cls(scenes=60_000, vae_steps=4_000, steps=200_000) if device.type == "cuda" else cls()


def main(argv: Sequence[str] | None = None) -> int:
    started = time.monotonic()
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    count = number(int, lambda value: value >= 0, "a whole number that is not negative")
    amount = number(float, lambda value: 0 <= value < math.inf, "a number that is not negative")
    positive_amount = number(float, lambda value: 0 < value < math.inf, "a number above 0")
    add("--state", type=Path, default=HERE.parent / "build" / "backbone", help="where a stopped run goes on from")
    add("--out", type=Path, default=HERE / "weights", help="the diffusers folder to write")
    add("--scenes", type=count, help="pictures to draw, each drawing in three colourings (12000, on a GPU 60000)")
    add("--vae-steps", type=count, help="(1000, on a GPU 4000); a VAE that made latents is not trained further")
    add("--steps", type=count, help="of the UNet and the text encoder (4000, on a GPU 200000)")
    add("--minutes", type=amount, default=0.0, help="stop after so long, all told; the learning rate falls in time")
    add("--batch", type=positive, help="captioned pictures a step (16, on a GPU 256)")
    add("--rate", type=positive_amount, help="peak learning rate (8e-4, on a GPU 1.5e-3)")
    add("--threads", type=int, default=0, help="CPU threads; 0 leaves PyTorch's choice")
    add("--workers", type=int, default=0, help="processes that draw scenes; 0 is one a core")
    add("--begin", type=Path, metavar="WEIGHTS", help="begin with weights that train.py wrote, backbone/weights say")
    add("--unpack", type=Path, metavar="FOLDER", help="begin with the state in these shards")
    add("--pack", type=Path, metavar="FOLDER", help="leave the state in shards of at most 16 MiB, 64 MiB together")
    add("--no-train", action="store_true", help="only unpack, write the weights, pack")
    options = parser.parse_args(argv)
    try:
        device = _prepare(options.threads)
        with first_then_others():
            if options.unpack and share()[0] == 0:
                print(f"unpacked {options.unpack}: step {unpack(options.unpack, options.state)}", flush=True)
            if options.begin and share()[0] == 0:
                print(f"begun from {options.begin}: step {begin(options.begin, options.state)}", flush=True)
        if not options.no_train:
            _train(options, device, started)
        if share()[0] == 0:
            _save(options)
    except (ShardError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, TrainingError) else 2
    return 0


def _prepare(threads: int) -> torch.device:
    """Return the device of this process, under torchrun too."""
    if threads:
        torch.set_num_threads(threads)
    cuda = torch.cuda.is_available()
    if "RANK" in os.environ:  # set by torchrun; the others wait while the first draws scenes
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        torch.distributed.init_process_group(backend, timeout=timedelta(hours=6))
    if not cuda:
        return torch.device("cpu")
    torch.set_float32_matmul_precision("high")  # TF32
    torch.backends.cudnn.benchmark = True
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def _train(options: argparse.Namespace, device: torch.device, started: float) -> None:
    state: Path = options.state
    amount = Amount.for_device(device)
    given = {name: value for name in ("batch", "rate") if (value := getattr(options, name)) is not None}
    recipe = replace(Recipe.for_device(device), **given)
    seconds = 60 * options.minutes if options.minutes else math.inf
    with first_then_others():
        pictures = corpus(state, options.scenes or amount.scenes, options.workers)
        tokenizer = build_tokenizer(pictures.captions[:3000], state / "tokenizer")
    vae = train_vae(pictures, state, options.vae_steps or amount.vae_steps, device, VAE_SHARE * seconds)
    with first_then_others():
        latents = encode_all(vae, pictures, state, device)
    left = seconds - (time.monotonic() - started)
    scheduler, steps = build_scheduler(), options.steps or amount.steps
    reached = train_diffusion(
        latents, pictures.captions, tokenizer, scheduler, state, steps, device, recipe=recipe, seconds=left
    )
    if share()[0] == 0:
        print(f"step {reached} on {device}", flush=True)


def _save(options: argparse.Namespace) -> None:
    save_pipeline(options.out, pipeline_of(options.state))
    write_record(options.state, options.out)
    print(f"saved {options.out}")
    if options.pack:
        print(f"packed {pack(options.state, options.pack)}")


if __name__ == "__main__":
    sys.exit(main())
