"""From an fp32 ONNX file to the file that is served: its precision written into it, or an engine built of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx as onnx_library

from slime_export.errors import ExportError
from slime_export.graph import chunking, precision, winograd
from slime_export.graph import engine_builder as tensorrt
from slime_export.graph import engine_runner as engine
from slime_export.graph import onnx_export as onnx
from slime_export.graph import quantisation as quantise
from slime_export.graph.calibration import Feeds
from slime_export.proof.exported import Network
from slime_export.proof.session import OnnxModel, providers_for
from slime_image import load
from slime_optimize.data.annotations.pictures import IMAGE_SUFFIXES
from slime_optimize.method.prediction import Predictor
from slime_repository.variant import Variant
from slime_was.tensors import LATENTS

Image = npt.NDArray[np.uint8]
# Ranges settle within a few images; each costs an encoding and a pass.
MOST_IMAGES = 16


def lowered(
    folder: Path,
    into: Path,
    variant: Variant,
    feeds: Feeds,
    external_over: int,
    passes: quantise.Check | None = None,
    *,
    cpu: bool = False,
) -> Path:
    """The fp32 model of `folder` in the form's precision, in the folder `into`, or `folder` itself for fp32.

    cpu: fp32 is rewritten for CPUs (`for_cpu`). An int8 model that `passes` refuses keeps what hurts most in float;
    quantised.json beside it says what, and why.
    """
    if variant.precision == "fp32":
        return for_cpu(folder, into, external_over) if cpu else folder
    into.mkdir(parents=True)
    if variant.precision == "int8":
        source = folder / onnx.FILE
        symmetric = variant.format == "tensorrt"
        result = quantise.quantised(
            source, into, feeds, passes=passes, symmetric=symmetric, external_over=external_over
        )
        result.write()
        return into
    model = onnx_library.load(str(folder / onnx.FILE))
    low: precision.Low = "fp16" if variant.precision == "fp16" else "bf16"
    onnx.save(precision.convert(model, low), into, external_over)
    return into


def for_cpu(folder: Path, into: Path, external_over: int = onnx.EXTERNAL_OVER) -> Path:
    """The fp32 model of `folder` rewritten for CPUs, in the folder `into`; `folder` itself where nothing gains by it.

    Equal but for rounding: convolutions by Winograd's algorithm, attention in chunks of queries.
    """
    model = onnx_library.load(str(folder / onnx.FILE))
    if winograd.rewritten(model) + chunking.rewritten(model) == 0:
        return folder
    into.mkdir(parents=True, exist_ok=True)
    onnx.save(model, into, external_over)
    return into


def encoder_variant(variant: Variant) -> Variant:
    """int8 UNets have an fp32 encoder."""
    return Variant(encoder=variant.encoder, format=variant.format) if variant.precision == "int8" else variant


def built(folder: Path, into: Path, options: tensorrt.Options, say: tensorrt.Say) -> Path:
    """The folder `into` with a TensorRT engine of the model of `folder`."""
    into.mkdir(parents=True)
    tensorrt.build(folder / onnx.FILE, into, options, say)
    return into


def opened(folder: Path, variant: Variant) -> Network:
    """The model that lies there, ready to run."""
    if variant.format == "tensorrt":
        return engine.Engine(folder / tensorrt.FILE)
    return opened_file(folder / onnx.FILE, variant)


def opened_file(path: Path, variant: Variant) -> OnnxModel:
    """An ONNX file on the providers that run its precision."""
    return OnnxModel(path, providers_for(variant.precision))


def calibrating(folder: Path | None, training: Image | None) -> list[Image]:
    """Images that ranges are measured on: up to MOST_IMAGES of `folder`, evenly chosen, or the training image."""
    if folder is None and training is None:
        raise ExportError(
            "--precision int8: the segmenter keeps no training image to measure ranges on; give --calibration DIR "
            "with some of the images it is for"
        )
    if folder is None:
        return [training] if training is not None else []
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise ExportError(f"--calibration {folder}: no image there, expected {', '.join(IMAGE_SUFFIXES)}")
    return [load(path) for path in found[:: -(-len(found) // MOST_IMAGES)]]


def feeds_of(predictor: Predictor, images: Sequence[Image]) -> Feeds:
    """What the UNet is given for each image."""
    return [{LATENTS: predictor.latents([image]).cpu().numpy()} for image in images]
