"""Train the embedded backbone from nothing but PartScenes' images and captions.

    python backbone/train.py --state build/backbone --out backbone/weights
    torchrun --nproc-per-node 2 backbone/train.py ...      (a process a core, or a GPU)

Stops and resumes at any moment; raising --steps goes on from the last state.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from slime_backbone.autoencoder import encode_all, train_vae
from slime_backbone.corpus import corpus
from slime_backbone.diffusion import train_diffusion
from slime_backbone.models import build_scheduler, build_tokenizer
from slime_backbone.saving import save_pipeline
from slime_backbone.training import share

HERE = Path(__file__).parent


def main() -> None:
    options = _arguments()
    if "RANK" in os.environ:  # set by torchrun
        torch.distributed.init_process_group("gloo")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.threads:
        torch.set_num_threads(options.threads)
    state: Path = options.state
    pictures = corpus(state, options.scenes)
    tokenizer = build_tokenizer(pictures.captions[:3000], state / "tokenizer")
    vae = train_vae(pictures, state, options.vae_steps, device)
    latents = encode_all(vae, pictures, state / f"latents-{options.scenes}.npz", device)
    scheduler = build_scheduler()
    unet, text_encoder, history = train_diffusion(
        latents, pictures.captions, tokenizer, scheduler, state, options.steps, device,
        batch=options.batch, rate=options.rate,
    )
    if share()[0] > 0:
        return
    save_pipeline(options.out, unet=unet, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler)
    print(f"saved {options.out} after {len(history)} steps on {device}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, default=HERE.parent / "build" / "backbone", help="where a stopped run goes on from")
    parser.add_argument("--out", type=Path, default=HERE / "weights", help="the diffusers folder to write")
    parser.add_argument("--scenes", type=int, default=12000)
    parser.add_argument("--vae-steps", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=8e-4, help="peak learning rate")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves PyTorch's choice")
    return parser.parse_args()


if __name__ == "__main__":
    main()
