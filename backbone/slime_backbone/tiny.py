"""From a distillation to WEIGHTS/tiny_vae: config, half-precision safetensors, and a record of how it came to be."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.models.attention_processor import AttnProcessor
from torch.utils.flop_counter import FlopCounterMode

from slime_backbone.distillation import Lesson, Recipe, lesson_of, relative_error, teacher, vae_digest
from slime_backbone.models import build_tiny_vae
from slime_backbone.scene import COUNTS, KINDS, SIZE, scene
from slime_backbone.shards import thin
from slime_backbone.training import Run

FOLDER = "tiny_vae"
RECORD = "training.json"
_ENTRIES = 200  # of the history


def save_tiny(weights: Path, run: Run, recipe: Recipe) -> Path:
    """Write WEIGHTS/tiny_vae, which is renamed into place when it is whole, and return it."""
    tiny = build_tiny_vae()
    tiny.encoder.load_state_dict(run.modules["encoder"].state_dict())
    tiny.half()
    with tempfile.TemporaryDirectory(dir=weights, prefix="new-") as staged:
        stage = Path(staged) / FOLDER
        tiny.save_pretrained(stage, safe_serialization=True)
        record = {
            "vae": vae_digest(weights),
            "seed": recipe.seed,
            "step": run.step,
            "multiplications": multiplications(tiny.float(), teacher(weights)),
            "relative_error": round(relative_error(tiny.eval(), validation(weights)), 4),
            "sessions": run.sessions,
            "history": [{k: round(v, 5) for k, v in entry.items()} for entry in thin(run.history, _ENTRIES)],
        }
        (stage / RECORD).write_text(json.dumps(record) + "\n")
        if (weights / FOLDER).exists():
            (weights / FOLDER).replace(Path(staged) / "old")
        stage.replace(weights / FOLDER)
    return weights / FOLDER


def multiplications(tiny: AutoencoderTiny, vae: AutoencoderKL) -> dict[str, int]:
    """Return the multiply-accumulates of one picture through either encoder."""
    vae.set_attn_processor(AttnProcessor())  # PyTorch's own attention is not counted on CPUs
    pixels, counts = torch.zeros(1, 3, SIZE, SIZE), {}
    for name, model in (("tiny", tiny), ("kl", vae)):
        with torch.no_grad(), FlopCounterMode(display=False) as counted:
            model.encode(pixels)
        counts[name] = counted.get_total_flops() // 2
    return counts


def validation(weights: Path) -> Lesson:
    """Return PartScenes' validation scenes of all classes, which no training saw, and the VAE's latents of them."""
    images = np.stack([scene(kind, "validation", i).image for kind in KINDS for i in range(COUNTS["validation"])])
    return lesson_of(weights, images)
