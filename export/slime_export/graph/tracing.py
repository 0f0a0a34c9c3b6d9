"""A segmenter's networks, from PyTorch to fp32 ONNX files: which module, under which names and sizes."""

from __future__ import annotations

from pathlib import Path

from slime_export.graph import onnx_export as onnx
from slime_export.graph.encoder import Encoder
from slime_export.graph.onnx_export import Signature
from slime_export.graph.unet import MapsUNet
from slime_optimize.method.prediction import Predictor
from slime_repository.contract import Variant, map_names
from slime_was.options import LENGTH
from slime_was.tensors import ACCUMULATED, CROSS, LATENTS, PIXELS, POSTPROCESS, SELF

LATENT_CHANNELS = 4


def encoder_signature(image_size: int, latent_size: int) -> Signature:
    """Names and sizes of the encoder's input and output."""
    return Signature(
        inputs={PIXELS: (3, image_size, image_size)}, outputs={LATENTS: (LATENT_CHANNELS, latent_size, latent_size)}
    )


def unet_signature(latent_size: int, variant: Variant) -> Signature:
    """Names and sizes of the input and outputs of a UNet of this form.

    The number of parts is left open: Triton describes all versions of a model in one file, and the next version may
    have more parts.
    """
    each_part = (-1, latent_size, latent_size)
    pixels = latent_size**2
    dims = {CROSS: each_part, ACCUMULATED: each_part, SELF: (pixels, pixels), POSTPROCESS: (LENGTH,)}
    return Signature(
        inputs={LATENTS: (LATENT_CHANNELS, latent_size, latent_size)},
        outputs={name: dims[name] for name in map_names(variant)},
    )


def trace_encoder(predictor: Predictor, folder: Path, external_over: int) -> Path:
    """Writes `folder`, which is made, and returns it."""
    backbone = predictor.backbone
    folder.mkdir(parents=True)
    module = Encoder(backbone, predictor.segmenter.settings.encoder)
    onnx.write(module, encoder_signature(backbone.image_size, backbone.latent_size), folder, external_over)
    return folder


def trace_unet(predictor: Predictor, variant: Variant, folder: Path, external_over: int) -> Path:
    """Writes `folder`, which is made, and returns it."""
    folder.mkdir(parents=True)
    module = MapsUNet(predictor.segmenter, predictor.backbone, weighted=variant.weighted)
    onnx.write(module, unet_signature(predictor.backbone.latent_size, variant), folder, external_over)
    return folder
