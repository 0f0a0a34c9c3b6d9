"""The same ONNX files behind the server: a repository of links to them, served by serve/launch.py, asked over gRPC."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.server import launched
from benchmarks.common.sides import ROOT
from benchmarks.pipeline.served_side import opened
from benchmarks.pipeline.side import Mask, Stages, Variant
from slime_client import Segmenter
from slime_repository import contract
from slime_repository.variant import Variant as ExportVariant
from slime_was import Postprocess, tensors
from slime_was.tensors import CROSS, SELF

NAME = "measured"


class Triton(Variant):
    """From bytes to masks over loopback. The stage `unet` holds all of the time; peak memory is the client's alone."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._threads = options.threads
        self._stack = ExitStack()
        scratch = self._stack.enter_context(tempfile.TemporaryDirectory(dir=options.unet.parents[1]))
        self.image_size = build(Path(scratch), options)
        server = self._stack.enter_context(launched(Path(scratch), "--no-verify", "--threads", str(options.threads)))
        self._client = self._stack.enter_context(Segmenter(server.url, NAME))

    @property
    def about(self) -> dict[str, Any]:
        return {"device": "cpu", "threads": self._threads, "versions": {}}

    def masks(self, files: Sequence[bytes], stage: Stages) -> list[Mask]:
        with stage("unet"):
            return [self._client.segment(each, timeout=600).array for each in files]

    def close(self) -> None:
        self._stack.close()


def build(repository: Path, options: argparse.Namespace) -> int:
    """Write a repository of the two models; return the side of the images they take."""
    side, latents, postprocess, variant, parts = _read(options)
    reading = contract.Reading(image_size=side, postprocess=postprocess)
    for model, config in ((contract.PREPROCESS, contract.preprocess_config(reading)), (contract.WAS, None)):
        shutil.copytree(ROOT / "model_repository" / model, repository / model)
        if config:
            (repository / model / "config.pbtxt").write_text(config)
    channels, size, _ = latents
    encoder = contract.vae_encoder_config(
        backbone=NAME, image_size=side, latent_channels=channels, latent_size=size, variant=variant
    )
    unet = contract.unet_config(
        segmenter=NAME, parts=parts, latent_channels=channels, latent_size=size, variant=variant
    )
    told = {"form": "baked", "image_size": str(side)}
    told |= {"parts": json.dumps([f"part {part}" for part in range(parts)])}
    told |= {"colours": json.dumps([[part] * 3 for part in range(parts)])}
    ensemble = contract.ensemble_config(
        segmenter=NAME, versions=contract.Versions(), parameters=told, reading=reading, variant=variant
    )
    _model(repository / variant.encoder_model, encoder, options.encoder)
    _model(repository / contract.unet_name(NAME, variant), unet, options.unet)
    _model(repository / NAME, ensemble, None)
    return side


def _read(options: argparse.Namespace) -> tuple[int, tuple[int, int, int], Postprocess, ExportVariant, int]:
    """Return the image's side, the latents' shape, the postprocessing, the variant and the number of parts."""
    encoder = opened(options.encoder, options)
    side = int(encoder.get_inputs()[0].shape[-1])
    unet = opened(options.unet, options)
    latents = tuple(int(size) for size in unet.get_inputs()[0].shape[1:])
    names = [output.name for output in unet.get_outputs()]
    answer = unet.run([CROSS, tensors.POSTPROCESS], {tensors.LATENTS: np.zeros((1, *latents), np.float32)})
    variant = ExportVariant(maps="averaged" if SELF in names else "weighted")
    channels, height, width = latents
    return side, (channels, height, width), Postprocess.from_vector(answer[1][0]), variant, int(answer[0].shape[1])


def _model(folder: Path, config: str, file: Path | None) -> None:
    """Write a model's folder; the weights stay where they are and are linked."""
    version = folder / "1"
    version.mkdir(parents=True)
    (folder / "config.pbtxt").write_text(config)
    for each in file.parent.glob("model.onnx*") if file else ():
        (version / each.name).hardlink_to(each)
