"""Says which models serve a segmenter, with their tensors' types and shapes, and writes their ``config.pbtxt``.

    IMAGE > preprocess > PIXELS > vae_encoder > LATENTS > NAME_unet > CROSS, SELF, POSTPROCESS > was > MASK, SCORES,
                       > SIZE, STARTED, and GUIDE_IMAGE where the image guides the upsampling ----> SHARPENED

A UNet that weights gives ACCUMULATED in SELF's place. Its name, and the encoder's, follow from the variant.

Each segmenter is one linear ensemble. Only the two networks batch; the other models take one image of any size for each
request. Segmenters that read their images another way (channel order, patches) have a preprocess model of their own.
Dimensions never include the batch of a model that batches; -1 is any size. K parts, S image side, h x w map, N = h*w.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from slime_repository.config import CPU, OPENVINO, Accelerator, Model, Step, Tensor, model_config
from slime_repository.openvino_network import BF16, FP32, PRECISION
from slime_repository.variant import UNET_SUFFIX, VAE_ENCODER, Variant, encoder_name, is_encoder, is_unet
from slime_was import tensors as t
from slime_was.options import MAX_PARTS, Postprocess

# Also named by those who use the contract.
__all__ = ["UNET_SUFFIX", "VAE_ENCODER", "Tensor", "Variant", "encoder_name", "is_encoder", "is_unet", "model_config"]

PREPROCESS, WAS = "preprocess", "was"
# What tensors were called before: a repository with any of them was made by older code, and cannot be joined with ours.
OLD_TENSORS = frozenset({"WEIGHTING", "FITTED", "PRESENT", "WAS"})
# Of the shared form (shared_contract.py): the model that looks segmenters up, and how ensembles' names begin.
SEGMENTERS, SHARED = "segmenters", "shared_"

MAX_BATCH = 8
# Of an ensemble's parameters: what one image takes, measured on the server that is to answer. See client/slime_client.
IMAGE_SECONDS = "image_seconds"
# No model's queue has a limit: a batcher with one sends nothing ahead to a busy network, and now and then misses for
# half a second that it is free. `preprocess` limits the images under way (slime_image/admission.py), before decoding.
# The latents of one batch reach the UNet one after the other, within this time, and run as one batch again.
UNET_DELAY_US = 1000
# What the committed preprocess/config.pbtxt carries; a repository of another backbone has its own.
DEFAULT_IMAGE_SIZE = 512

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Versions:
    """The version of each composing model that an ensemble is pinned to."""

    preprocess: int = 1
    vae_encoder: int = 1
    unet: int = 1
    was: int = 1

    def __post_init__(self) -> None:
        if min(self.preprocess, self.vae_encoder, self.unet, self.was) < 1:
            raise ValueError(f"versions: got {self}, expected numbers from 1 on")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a segmenter's images become the networks' input."""

    image_size: int = DEFAULT_IMAGE_SIZE
    channel_order: str = "rgb"
    postprocess: Postprocess = field(default_factory=Postprocess)

    def __post_init__(self) -> None:
        if len(self.postprocess.crops) > MAX_BATCH:
            raise ValueError(
                f"patches: got {len(self.postprocess.crops)} crops of an image, expected at most {MAX_BATCH}, "
                "the largest batch that is served; optimise with fewer patches"
            )

    @property
    def model(self) -> str:
        """Return the preprocess model that reads so: `preprocess`, or a name that tells what is different."""
        words = [PREPROCESS]
        if self.channel_order != "rgb":
            words.append(self.channel_order)
        if self.postprocess.patches > 1:
            words.append(f"{self.postprocess.patches}x{self.postprocess.crop_side}")
        return "_".join(words)


def unet_name(segmenter: str, variant: Variant | None = None) -> str:
    """Return the model behind a segmenter's maps. Raises ValueError where the segmenter's name cannot be served."""
    reserved = segmenter in (WAS, SEGMENTERS) or segmenter.startswith(SHARED)
    reserved |= is_preprocess(segmenter) or is_encoder(segmenter) or is_unet(segmenter)
    if reserved or not _NAME.fullmatch(segmenter):
        raise ValueError(
            f"segmenter name: got {segmenter!r}, expected letters, digits, _ and - (at most 64), not {PREPROCESS} or "
            f"{PREPROCESS}_…, {VAE_ENCODER}, {WAS}, {SEGMENTERS}, {SHARED}… nor ending in {UNET_SUFFIX}; "
            "choose another name"
        )
    return segmenter + (variant or Variant()).unet_suffix


def is_preprocess(model: str) -> bool:
    """Return whether a model of this name reads images."""
    return model == PREPROCESS or model.startswith(f"{PREPROCESS}_")


def preprocess_config(reading: Reading | None = None) -> str:
    """Return the configuration of the model from IMAGE to PIXELS, GUIDE_IMAGE, STARTED and SIZE (height, width).

    PIXELS (crops, 3, S, S) in [-1, 1] are for the networks; GUIDE_IMAGE (3, S, S) is the whole image in any case.
    """
    reading = reading or Reading()
    crops = reading.postprocess.crops if reading.postprocess.patches > 1 else ()
    return model_config(
        Model(
            name=reading.model,
            backend="python",
            inputs=(IMAGE_TENSOR,),
            outputs=(
                Tensor(name=t.PIXELS, dtype="FP32", dims=(-1, 3, -1, -1)),
                SIZE_TENSOR,
                STARTED_TENSOR,
                GUIDE_IMAGE_TENSOR,
            ),
            parameters={
                "image_size": str(reading.image_size),
                "channel_order": reading.channel_order,
                "crops": json.dumps(crops),
                "crop_side": str(reading.postprocess.crop_side if crops else reading.image_size),
            },
        )
    )


def vae_encoder_config(
    *,
    backbone: str,
    image_size: int,
    latent_channels: int,
    latent_size: int,
    variant: Variant | None = None,
    accelerator: Accelerator | None = None,
    tiny: str | None = None,
) -> str:
    """Return the configuration of the model from PIXELS (batch, 3, S, S) to LATENTS (batch, C, h, w).

    They are the posterior's mean times the scaling factor, or the tiny encoder's. ``backbone``: content hash of the
    repository's one backbone; ``tiny``: that of its tiny encoder, where it is this one.
    """
    variant = variant or Variant()
    accelerator = accelerator or _openvino(variant)
    return model_config(
        Model(
            name=variant.encoder_model,
            backend=variant.backend,
            max_batch_size=MAX_BATCH,
            inputs=(Tensor(name=t.PIXELS, dtype="FP32", dims=(3, image_size, image_size)),),
            outputs=(latents(latent_channels, latent_size),),
            parameters={"backbone": backbone} | ({"tiny_encoder": tiny} if tiny else {}),
            accelerator=accelerator,
            warm_up=warm_up(accelerator),
        )
    )


def map_names(variant: Variant) -> tuple[str, str, str]:
    """Return the names of what a UNet of this variant gives out, and `was` takes in."""
    return (t.CROSS, t.ACCUMULATED if variant.weighted else t.SELF, t.POSTPROCESS)


def unet_config(
    *,
    segmenter: str,
    parts: int,
    latent_channels: int,
    latent_size: int,
    parameters: Mapping[str, str] | None = None,
    variant: Variant | None = None,
    accelerator: Accelerator | None = None,
) -> str:
    """Return the configuration of the model from LATENTS (batch, C, h, w) to a segmenter's maps.

    CROSS (batch, K, h, w), POSTPROCESS (batch, LENGTH + letters of the name), a constant, and by the variant one of
    two. averaged: SELF (batch, N, N). weighted: ACCUMULATED (batch, K, h, w).
    """
    if not 2 <= parts <= MAX_PARTS:
        raise ValueError(f"parts: got {parts}, expected 2 to {MAX_PARTS} with the background; paint fewer parts")
    variant = variant or Variant()
    accelerator = accelerator or _openvino(variant)
    # K is left open: all versions of a model share this file, and the next may have more parts. So is POSTPROCESS's
    # length: in versions that were exported before, it has no name.
    each_part, pixels = (-1, latent_size, latent_size), latent_size * latent_size
    dims = {
        t.CROSS: each_part,
        t.ACCUMULATED: each_part,
        t.SELF: (pixels, pixels),
        t.POSTPROCESS: (-1,),
    }
    return model_config(
        Model(
            name=unet_name(segmenter, variant),
            backend=variant.backend,
            max_batch_size=MAX_BATCH,
            inputs=(latents(latent_channels, latent_size),),
            outputs=tuple(Tensor(name=name, dtype="FP32", dims=dims[name]) for name in map_names(variant)),
            parameters=parameters or {},
            accelerator=accelerator,
            delay_us=UNET_DELAY_US,
            warm_up=warm_up(accelerator),
        )
    )


def was_config() -> str:
    """Return the configuration of the model from the maps of one image's crops to MASK (H, W), SCORES (K, h, w) and
    SHARPENED (K, G, G), the scores that the mask is the argmax of once they are enlarged.

    It takes SELF or ACCUMULATED, as the UNet gives them; PART_MASK (crops, P), of 1 and 0, where maps have slots for
    more parts; STARTED for its metrics; and GUIDE_IMAGE where the image guides the upsampling.
    """
    return model_config(
        Model(
            name=WAS,
            backend="python",
            inputs=(
                Tensor(name=t.CROSS, dtype="FP32", dims=(-1, -1, -1, -1)),
                Tensor(name=t.SELF, dtype="FP32", dims=(-1, -1, -1), optional=True),
                Tensor(name=t.ACCUMULATED, dtype="FP32", dims=(-1, -1, -1, -1), optional=True),
                Tensor(name=t.POSTPROCESS, dtype="FP32", dims=(-1, -1)),
                SIZE_TENSOR,
                replace(STARTED_TENSOR, optional=True),
                replace(GUIDE_IMAGE_TENSOR, optional=True),
                Tensor(name=t.PART_MASK, dtype="FP32", dims=(-1, -1), optional=True),
            ),
            outputs=ANSWER,
        )
    )


def ensemble_config(
    *,
    segmenter: str,
    versions: Versions,
    parameters: Mapping[str, str],
    reading: Reading | None = None,
    variant: Variant | None = None,
) -> str:
    """Return the configuration of the segmenter itself, from IMAGE to what `was` gives, pinned to ``versions``.

    ``parameters``: what the client shows and checks (parts, colours, hashes); the variant's words are added.
    """
    reading, variant = reading or Reading(), variant or Variant()
    read = (t.SIZE, t.STARTED, *((t.GUIDE_IMAGE,) if reading.postprocess.edge_tolerance > 0 else ()))
    maps = map_names(variant)
    steps = (
        Step(model=reading.model, version=versions.preprocess, inputs=(t.IMAGE,), outputs=(t.PIXELS, *read)),
        Step(model=variant.encoder_model, version=versions.vae_encoder, inputs=(t.PIXELS,), outputs=(t.LATENTS,)),
        Step(model=unet_name(segmenter, variant), version=versions.unet, inputs=(t.LATENTS,), outputs=maps),
        Step(model=WAS, version=versions.was, inputs=(*maps, *read), outputs=tuple(tensor.name for tensor in ANSWER)),
    )
    return model_config(
        Model(
            name=segmenter,
            backend=None,
            inputs=(IMAGE_TENSOR,),
            outputs=ANSWER,
            steps=steps,
            parameters={**parameters, **variant.parameters()},
        )
    )


def warm_up(accelerator: Accelerator | None = None) -> tuple[int, ...]:
    """Return the batch sizes to run before a network counts as loaded: all, as GPUs and OpenVINO prepare for each.

    It is one alone where ONNX Runtime runs the network on a CPU, which has nothing to prepare.
    """
    return (1,) if accelerator is not None and accelerator.name == CPU else tuple(range(1, MAX_BATCH + 1))


def openvino_computes_in(variant: Variant) -> str:
    """Return the precision that OpenVINO is told to compute in; an int8 file says by itself what is int8."""
    return BF16 if variant.precision == "bf16" else FP32


def _openvino(variant: Variant) -> Accelerator | None:
    """Return what a variant for OpenVINO needs; None for any other."""
    if variant.format != OPENVINO:
        return None
    return Accelerator(name=OPENVINO, parameters={PRECISION: openvino_computes_in(variant)})


def latents(channels: int, size: int) -> Tensor:
    """Return LATENTS for maps of `size` x `size`."""
    return Tensor(name=t.LATENTS, dtype="FP32", dims=(channels, size, size))


IMAGE_TENSOR = Tensor(name=t.IMAGE, dtype="STRING", dims=(1,))
GUIDE_IMAGE_TENSOR = Tensor(name=t.GUIDE_IMAGE, dtype="FP32", dims=(3, -1, -1))
STARTED_TENSOR = Tensor(name=t.STARTED, dtype="INT64", dims=(1,))
SIZE_TENSOR = Tensor(name=t.SIZE, dtype="INT32", dims=(2,))
ANSWER = (
    Tensor(name=t.MASK, dtype="UINT8", dims=(-1, -1)),
    Tensor(name=t.SCORES, dtype="FP32", dims=(-1, -1, -1)),
    Tensor(name=t.SHARPENED, dtype="FP32", dims=(-1, -1, -1)),
)
