"""Write PartScenes to folders: images/NNN.png, masks/NNN.png (part indices), parts.json and more."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from slime_backbone.motion import clip
from slime_backbone.scene import COUNTS, parts_of, scene


def write_split(folder: Path, kind: str, split: str) -> Path:
    """Write COUNTS[split] scenes into `folder`/kind/split, and return it; a split that is whole already is left alone.

    parts.json is written last and marks a whole split.
    """
    out = folder / kind / split
    if (out / "parts.json").exists():
        return out
    for name in ("images", "masks"):
        (out / name).mkdir(parents=True, exist_ok=True)
    captions = []
    for index in range(COUNTS[split]):
        drawn = scene(kind, split, index)
        Image.fromarray(drawn.image).save(out / "images" / f"{index:03}.png")
        Image.fromarray(drawn.mask).save(out / "masks" / f"{index:03}.png")
        captions.append(drawn.caption)
    (out / "captions.json").write_text(json.dumps(captions, indent=1) + "\n")
    (out / "parts.json").write_text(json.dumps(parts_of(kind)) + "\n")
    return out


def write_clip(folder: Path, kind: str, split: str, index: int) -> Path:
    """Write a clip of PartScenes in motion into `folder`/kind/split/NNN, and return that; a whole one is left alone.

    motion.npz holds `flows` and `hidden`, as slime_backbone.motion.Clip has them. parts.json is written last.
    """
    out = folder / kind / split / f"{index:03}"
    if (out / "parts.json").exists():
        return out
    for name in ("images", "masks"):
        (out / name).mkdir(parents=True, exist_ok=True)
    drawn = clip(kind, split, index)
    for frame, (image, mask) in enumerate(zip(drawn.images, drawn.masks, strict=True)):
        Image.fromarray(image).save(out / "images" / f"{frame:03}.png")
        Image.fromarray(mask).save(out / "masks" / f"{frame:03}.png")
    np.savez_compressed(out / "motion.npz", flows=drawn.flows, hidden=drawn.hidden)
    (out / "parts.json").write_text(json.dumps(drawn.parts) + "\n")
    return out
