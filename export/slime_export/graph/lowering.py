"""Makes the served file of an fp32 ONNX file: its precision written into it, or an engine built of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from slime_export.errors import ExportError
from slime_export.graph import chunking, engine_builder, onnx_export, precision, quantisation, winograd
from slime_export.graph.sensitivity import Feeds
from slime_image import load
from slime_optimize.data.annotations.pictures import IMAGE_SUFFIXES
from slime_optimize.method.prediction import Predictor
from slime_repository.config import OPENVINO
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
    passes: quantisation.Check | None = None,
    *,
    cpu: bool = False,
) -> Path:
    """Write the fp32 model of `folder` in the variant's precision into the folder `into`; return where it is.

    For fp32, and for bf16 that OpenVINO computes in, that is `folder` itself, or with `cpu` what `for_cpu` returns. An
    int8 model that `passes` refuses keeps what hurts most in float; quantised.json beside it says what, and why.
    """
    if variant.precision == "fp32" or (variant.format, variant.precision) == (OPENVINO, "bf16"):
        return for_cpu(folder, into, external_over) if cpu else folder
    into.mkdir(parents=True)
    if variant.precision == "int8":
        symmetric = variant.format == "tensorrt"
        quantisation.quantised(
            folder / onnx_export.FILE, into, feeds, passes=passes, symmetric=symmetric, external_over=external_over
        ).write()
        return into
    low: precision.Low = "fp16" if variant.precision == "fp16" else "bf16"
    onnx_export.save(precision.convert(onnx.load(str(folder / onnx_export.FILE)), low), into, external_over)
    return into


def for_cpu(folder: Path, into: Path, external_over: int = onnx_export.EXTERNAL_OVER) -> Path:
    """Rewrite the fp32 model of `folder` for CPUs into the folder `into`; return `folder` where nothing gains by it.

    Equal but for rounding: convolutions by Winograd's algorithm, attention in chunks of queries.
    """
    model = onnx.load(str(folder / onnx_export.FILE))
    if winograd.rewritten(model) + chunking.rewritten(model) == 0:
        return folder
    into.mkdir(parents=True, exist_ok=True)
    onnx_export.save(model, into, external_over)
    return into


def encoder_variant(variant: Variant) -> Variant:
    """Return how the encoder beside a UNet of this variant is made: int8 UNets have an fp32 encoder."""
    return Variant(encoder=variant.encoder, format=variant.format) if variant.precision == "int8" else variant


def built(folder: Path, into: Path, options: engine_builder.Options, say: engine_builder.Say) -> Path:
    """Build a TensorRT engine of the model of `folder` into the folder `into`, which is made; return `into`."""
    into.mkdir(parents=True)
    engine_builder.build(folder / onnx_export.FILE, into, options, say)
    return into


def calibration_images(folder: Path | None, training: Image | None) -> list[Image]:
    """Load images to measure int8's ranges on: up to MOST_IMAGES of `folder`, evenly chosen, or the training image."""
    if folder is not None:
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise ExportError(f"--calibration {folder}: no image there, expected {', '.join(IMAGE_SUFFIXES)}")
        return [load(path) for path in found[:: -(-len(found) // MOST_IMAGES)]]
    if training is None:
        raise ExportError(
            "--precision int8: the segmenter keeps no training image to measure ranges on; give --calibration DIR "
            "with some of the images it is for"
        )
    return [training]


def feeds_of(predictor: Predictor, images: Sequence[Image]) -> Feeds:
    """Return the UNet's inputs for each image."""
    return [{LATENTS: predictor.latents([image]).cpu().numpy()} for image in images]
