"""A training's state in a few files small enough to fetch from a rented machine.

Weights and their average, step, history, the VAE and the tokenizer; not the optimiser's moments, which are as large
again and come back in a short warm-up, and not the scenes, which can be drawn again.

    FOLDER/manifest.json      step, sizes and sha256 of the shards
    FOLDER/state-STEP-I.bin   at most SHARD_BYTES each
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slime_backbone.autoencoder import SCALE_FILE, known_scale
from slime_backbone.models import TOKENIZER_FILES
from slime_backbone.training import read_state, write_state
from slime_optimize.files import whole, write_text

SHARD_BYTES = 15 * 2**20  # under the limit, so that no header or rounding goes over it
TOTAL_BYTES = 64 * 2**20
MAX_FILES = 8  # the manifest is one of them
MANIFEST = "manifest.json"
FORMAT = 1
HISTORY = 4000  # entries of the history that are kept


class ShardError(ValueError):
    """Shards that cannot be made, or not be put together again. One line."""


def pack(state: Path, folder: Path) -> Path:
    """Write the shards of `state` into `folder`, the manifest last, and remove those of an earlier packing.

    Raises TrainingError when the state is not whole and ShardError when it is larger than shards may be.
    """
    diffusion, payload = read_state(state / "diffusion.pt"), io.BytesIO()
    torch.save(_portable(state, diffusion), payload)
    data = payload.getvalue()
    pieces = [data[i : i + SHARD_BYTES] for i in range(0, len(data), SHARD_BYTES)]
    if len(data) > TOTAL_BYTES or len(pieces) >= MAX_FILES:
        raise ShardError(
            f"state {state}: {len(data)} bytes to pack, expected at most {TOTAL_BYTES}; train a smaller UNet"
        )
    shards = []
    for i, piece in enumerate(pieces):
        name = f"state-{diffusion['step']}-{i}.bin"
        with whole(folder / name) as waiting:
            waiting.write_bytes(piece)
        shards.append({"name": name, "bytes": len(piece), "sha256": hashlib.sha256(piece).hexdigest()})
    manifest = {"format": FORMAT, "step": diffusion["step"], "bytes": len(data), "shards": shards}
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    for old in set(folder.glob("state-*.bin")) - {folder / str(s["name"]) for s in shards}:
        old.unlink()
    return folder / MANIFEST


def unpack(folder: Path, state: Path) -> int:
    """Restore the state in `folder` as `state` and return its step. A training that is in `state` is never replaced."""
    taken = [name for name in ("diffusion.pt", "vae.pt") if (state / name).exists()]
    if taken:
        raise ShardError(
            f"state {state}: already holds {taken[0]}, expected no training there; "
            "leave out --unpack to go on with it, or name another --state"
        )
    portable = torch.load(io.BytesIO(_join(folder)), map_location="cpu", weights_only=True)
    (state / "tokenizer").mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        (state / "tokenizer" / name).write_text(portable["tokenizer"][name])
    (state / SCALE_FILE).write_text(json.dumps(portable["scale"]) + "\n")
    vae = {key: value.float() if value.is_floating_point() else value for key, value in portable["vae"].items()}
    write_state(portable["vae_state"] | {"modules": vae, "average": vae}, state / "vae.pt")
    write_state(portable["diffusion"], state / "diffusion.pt")
    return int(portable["diffusion"]["step"])


def _portable(state: Path, diffusion: dict[str, Any]) -> dict[str, Any]:
    vae = read_state(state / "vae.pt")
    average = {key: value.half() if value.is_floating_point() else value for key, value in vae["average"].items()}
    return {
        "diffusion": _without_weights(diffusion) | {k: diffusion[k] for k in ("modules", "average")},
        "vae": average,
        "vae_state": _without_weights(vae),
        "scale": known_scale(state),
        "tokenizer": {name: (state / "tokenizer" / name).read_text() for name in TOKENIZER_FILES},
    }


def _without_weights(stored: dict[str, Any]) -> dict[str, Any]:
    history = thin(json.loads(stored["history"]))
    return {"step": stored["step"], "history": json.dumps(history), "sessions": stored.get("sessions", "[]")}


def thin(history: list[dict[str, float]], entries: int = HISTORY) -> list[dict[str, float]]:
    """Return about `entries` at the most: each the last of its stretch, with the stretch's mean of every figure."""
    length = -(-len(history) // entries)
    if length <= 1:
        return history
    stretches = [history[i : i + length] for i in range(0, len(history), length)]
    return [_mean(stretch) | {"step": stretch[-1]["step"]} for stretch in stretches]


def _mean(stretch: list[dict[str, float]]) -> dict[str, float]:
    keys = dict.fromkeys(key for entry in stretch for key in entry)
    return {key: float(np.mean([entry[key] for entry in stretch if key in entry])) for key in keys}


def _join(folder: Path) -> bytes:
    """Return the payload, every byte of it checked."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        shards = [(folder / str(s["name"]), s["sha256"]) for s in manifest["shards"]]
        if manifest["format"] != FORMAT:
            raise ShardError(f"shards {folder}: format {manifest['format']}, expected {FORMAT}; pack them again")
    except FileNotFoundError as error:
        raise ShardError(f"shards {folder}: has no {MANIFEST}, expected what train.py --pack wrote") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ShardError(f"shards {folder}: {MANIFEST} is not what train.py --pack wrote; fetch it again") from error
    return b"".join(_checked(path, digest) for path, digest in shards)


def _checked(path: Path, digest: str) -> bytes:
    try:
        piece = path.read_bytes()
    except OSError as error:
        raise ShardError(f"shard {path}: cannot be read, expected it beside {MANIFEST}; fetch it again") from error
    found = hashlib.sha256(piece).hexdigest()
    if found != digest:
        raise ShardError(f"shard {path}: sha256 {found[:12]}, expected {digest[:12]}; fetch it again")
    return piece
