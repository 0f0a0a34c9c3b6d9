"""Which layer of an export drifts first: of its fp32 graph from PyTorch, or of a lower precision from that graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from slime_export.graph import lowering
from slime_export.graph import onnx_export as onnx
from slime_export.proof import drift
from slime_export.proof.drift import Drift
from slime_export.proof.references import References
from slime_export.proof.session import OnnxModel
from slime_optimize.method.prediction import Predictor
from slime_repository.variant import Variant
from slime_was.tensors import LATENTS, PIXELS


def encoder_from_pytorch(predictor: Predictor, answers: References, encoder: Path) -> Drift | None:
    """Of the fp32 model in the folder `encoder`, on the first image."""
    first = answers.first(1)
    model = predictor.backbone.encoder_model(predictor.segmenter.settings.encoder)
    expected = drift.of_modules(model, lambda: predictor.latents(first.images))
    return drift.found(drift.of_graph(encoder / onnx.FILE, _pixels(answers), OnnxModel), expected)


def unet_from_pytorch(predictor: Predictor, answers: References, unet: Path) -> Drift | None:
    """Of the fp32 model in the folder `unet`, on the first image."""
    latents = predictor.latents(answers.first(1).images)
    expected = drift.of_modules(predictor.backbone.unet, lambda: predictor.maps(latents))
    return drift.found(drift.of_graph(unet / onnx.FILE, _latents(answers), OnnxModel), expected)


def encoder_from_fp32(answers: References, exact: Path, low: Path, variant: Variant) -> Drift | None:
    """Of the encoder in the folder `low` from the fp32 one in `exact`."""
    return _between(exact, low, variant, _pixels(answers))


def unet_from_fp32(answers: References, exact: Path, low: Path, variant: Variant) -> Drift | None:
    """Of the UNet in the folder `low` from the fp32 one in `exact`."""
    return _between(exact, low, variant, _latents(answers))


def _between(exact: Path, low: Path, variant: Variant, inputs: dict[str, npt.NDArray[np.float32]]) -> Drift | None:
    expected = drift.of_graph(exact / onnx.FILE, inputs, OnnxModel)
    got = drift.of_graph(low / onnx.FILE, inputs, lambda path: lowering.opened_file(path, variant))
    return drift.found(got, expected, drift.NOTED[variant.precision])


def _pixels(answers: References) -> dict[str, npt.NDArray[np.float32]]:
    return {PIXELS: answers.first(1).crops_B3SS}


def _latents(answers: References) -> dict[str, npt.NDArray[np.float32]]:
    return {LATENTS: answers.first(1).tensors[LATENTS]}
