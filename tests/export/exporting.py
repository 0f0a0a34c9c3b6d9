"""What the tests of this folder share: the parts of a tiny segmenter, and what exporting it gave."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from backbones import LATENT_SIZE
from slime_export.graph.runtimes import Network
from slime_export.proof import parity, references
from slime_export.proof.report import Report
from slime_export.publish.publication import Published
from slime_optimize.backbone import Backbone
from slime_optimize.layers import Layers
from slime_optimize.method.prediction import Predictor
from slime_optimize.segmenter import Segmenter
from slime_optimize.settings import Settings

PARTS = ("background", "body", "wheel", "window", "plate")
Snapshot = dict[str, bytes | None]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A segmenter's folder, the repository it was exported into, and what the export said."""

    kind: str
    folder: Path
    repository: Path
    predictor: Predictor
    published: Published
    report: Report
    lines: list[str]

    @property
    def unet(self) -> Path:
        return self.repository / "car_unet" / "1" / "model.onnx"


def shared_segmenter(backbone: Backbone, seed: int, parts: int, settings: dict[str, Any]) -> Segmenter:
    """With random embeddings and noise, of a backbone that is loaded."""
    chance = torch.Generator().manual_seed(seed)
    noise_samples = settings.get("noise_samples", 1)
    return Segmenter(
        text_embedding=torch.randn(1, 77, backbone.text_width, generator=chance),
        noise=torch.randn(noise_samples, 4, LATENT_SIZE, LATENT_SIZE, generator=chance),
        parts=tuple(f"part {number}" for number in range(parts)),
        colours=((1, 2, 3),) * parts,
        backbone_id=backbone.id,
        backbone_hash=backbone.hash,
        image_size=backbone.image_size,
        latent_size=backbone.latent_size,
        settings=Settings().changed(settings),
        preset="paper",
        seed=seed,
    )


def annotated(folder: Path, predictor: Predictor, images: Sequence[npt.NDArray[np.uint8]]) -> Path:
    """An annotated folder of these images, whose truth is what the predictor answers."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / "images" / f"{index}.png")
        Image.fromarray(predictor.mask(image)).save(folder / "masks" / f"{index}.png")
    (folder / "parts.json").write_text(json.dumps(list(predictor.segmenter.parts)))
    return folder


LATE = "up_blocks.3.attentions.{}.transformer_blocks.0.attn2"
OPTIONS: dict[str, dict[str, Any]] = {
    "best": {"readout": "parts", "rescale": True, "edge_tolerance": 0.1},
    "passes": {"t_test": 100, "extra_timesteps": [300], "noise_samples": 2, "flip_average": True},
    # As the embedded backbone reads them: some of the layers come after a self layer, or before no other.
    "late": {"layers": {"cross": [*Layers().cross, LATE.format(0), LATE.format(2)], "self": list(Layers().self_)}},
    "suppressed": {"suppress_first_part": True, "drop_background": True, "threshold": 0.012},
    "published": {
        "channel_order": "bgr",
        "drop_background": True,
        "suppress_first_part": True,
        "rescale": True,
        "patches": 2,
        "patch_side": 0.75,
    },
}


def names(options: Iterable[str]) -> list[Any]:
    """The options' names as parameters; as each has a UNet traced, those that others resemble are slow."""
    slow = {"best", "passes", "published", "suppressed"}
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in options]


def changed(folder: Path, settings: dict[str, Any]) -> Segmenter:
    """The segmenter in `folder` with other settings, written back."""
    made = Segmenter.load(folder)
    after = made.settings.changed(settings)
    noise = torch.randn(after.noise_samples, 4, LATENT_SIZE, LATENT_SIZE, generator=torch.Generator().manual_seed(1))
    segmenter = replace(made, settings=after, noise=noise)
    segmenter.save(folder)
    return segmenter


def compared(predictor: Predictor, encoder: Network, unet: Network, seed: int = 0) -> Report:
    """Compare both exported models with `predictor` on images drawn from `seed`."""
    images, weighted = parity.trial_images(predictor, seed=seed), "ACCUMULATED" in unet.outputs
    expected = references.answered(predictor, images, weighted=weighted, own_error=False)
    return Report(comparisons=parity.measured(expected, unet, parity.encoded(expected, encoder)))
