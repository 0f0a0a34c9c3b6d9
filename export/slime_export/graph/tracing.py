"""Traces a segmenter's networks from PyTorch to fp32 ONNX files: which module, under which names and sizes."""

from __future__ import annotations

from pathlib import Path

from slime_export.graph import onnx_export
from slime_export.graph.networks import Encoder, MapsUNet, SharedUNet
from slime_export.graph.onnx_export import Signature
from slime_optimize.method.prediction import Predictor
from slime_repository.contract import map_names
from slime_repository.shared_contract import Group, unet_inputs
from slime_repository.variant import Variant
from slime_was.tensors import ACCUMULATED, CROSS, LATENTS, PIXELS, POSTPROCESS, SELF

LATENT_CHANNELS = 4


def encoder_signature(image_size: int, latent_size: int) -> Signature:
    """Return the names and sizes of the encoder's input and output."""
    return Signature(
        inputs={PIXELS: (3, image_size, image_size)}, outputs={LATENTS: (LATENT_CHANNELS, latent_size, latent_size)}
    )


def unet_signature(latent_size: int, variant: Variant) -> Signature:
    """Return the names and sizes of the input and outputs of a baked UNet.

    The number of parts, and the length of POSTPROCESS with the name in it, are left open: Triton describes all versions
    of a model in one file, and the next version may have more parts.
    """
    each_part, pixels = (-1, latent_size, latent_size), latent_size**2
    dims = {CROSS: each_part, ACCUMULATED: each_part, SELF: (pixels, pixels), POSTPROCESS: (-1,)}
    return Signature(
        inputs={LATENTS: (LATENT_CHANNELS, latent_size, latent_size)},
        outputs={name: dims[name] for name in map_names(variant)},
    )


def shared_unet_signature(group: Group) -> Signature:
    """Return the names and sizes of the inputs and outputs of a group's UNet."""
    side, each_part = group.latent_size, (group.most_parts, group.latent_size, group.latent_size)
    cross, attended, _ = map_names(group.variant)
    return Signature(
        inputs={LATENTS: (LATENT_CHANNELS, side, side)} | {each.name: each.dims for each in unet_inputs(group)},
        outputs={cross: each_part, attended: each_part if group.variant.weighted else (side**2, side**2)},
    )


def trace_encoder(predictor: Predictor, folder: Path, external_over: int) -> Path:
    """Write the segmenter's encoder into `folder`, which is made; return `folder`."""
    backbone = predictor.backbone
    folder.mkdir(parents=True)
    module = Encoder(backbone, predictor.segmenter.settings.encoder)
    onnx_export.write(module, encoder_signature(backbone.image_size, backbone.latent_size), folder, external_over)
    return folder


def trace_unet(predictor: Predictor, variant: Variant, folder: Path, external_over: int, name: str = "") -> Path:
    """Write the UNet with the segmenter baked in into `folder`, which is made; return `folder`.

    `name`: the segmenter's on the server.
    """
    folder.mkdir(parents=True)
    module = MapsUNet(predictor.segmenter, predictor.backbone, weighted=variant.weighted, name=name)
    onnx_export.write(module, unet_signature(predictor.backbone.latent_size, variant), folder, external_over)
    return folder


def trace_shared_unet(predictor: Predictor, group: Group, folder: Path, external_over: int) -> Path:
    """Write the UNet of the segmenter's group into `folder`, which is made; return `folder`."""
    folder.mkdir(parents=True)
    module = SharedUNet(predictor.segmenter, predictor.backbone, group.most_parts, weighted=group.variant.weighted)
    onnx_export.write(module, shared_unet_signature(group), folder, external_over)
    return folder
