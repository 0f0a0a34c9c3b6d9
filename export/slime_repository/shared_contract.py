"""Says which models serve the shared form: ONE UNet takes the text embedding as an input, and a segmenter is a file.

    IMAGE, SEGMENTER > segmenters > PIXELS > vae_encoder > LATENTS > GROUP_unet > CROSS, ACCUMULATED > was > MASK
                                  > TEXT, NOISE, PART_MASK ------------^
                                  > SIZE, STARTED, POSTPROCESS, PART_MASK, GUIDE_IMAGE, and DESCRIPTION >

A group is what segmenters must have in common to share a graph: timesteps, layers, readout, variant. Everything else
is in the segmenter's file, so requests for different segmenters of a group run in one batch.
T text tokens, D text width, R draws of noise, P the most parts that the group takes, K those of a segmenter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from slime_repository.config import Model, Step, Tensor, model_config
from slime_repository.contract import (
    ANSWER,
    GUIDE_IMAGE_TENSOR,
    IMAGE_TENSOR,
    MAX_BATCH,
    SEGMENTERS,
    SHARED,
    SIZE_TENSOR,
    STARTED_TENSOR,
    UNET_DELAY_US,
    WAS,
    Versions,
    latents,
    map_names,
    warm_up,
)
from slime_repository.variant import Variant
from slime_was import tensors as t

STORE = "store"  # the folder of the segmenters' files, in the model's own
TOKENS = 77
# The maps that a group's UNet gives are of one of these numbers of parts, so that few groups serve all.
SIZES = (8, 16, 32, 77)
_GROUP = re.compile(SHARED + r"[0-9a-f]{8}")


@dataclass(frozen=True, kw_only=True)
class Group:
    """What a shared UNet is made for. ``key``: 8 hexadecimal digits of what its segmenters have in common."""

    key: str
    most_parts: int
    noise_samples: int
    text_width: int
    latent_channels: int
    latent_size: int
    variant: Variant

    @property
    def name(self) -> str:
        """Return the ensemble's name."""
        return SHARED + self.key

    @property
    def unet(self) -> str:
        return self.name + self.variant.unet_suffix


def is_group(model: str) -> bool:
    """Return whether a model of this name is the ensemble of a group."""
    return _GROUP.fullmatch(model) is not None


def most_parts(parts: int) -> int:
    """Return how many parts the group of a segmenter of `parts` takes."""
    return next(size for size in SIZES if size >= parts)


def segmenters_config() -> str:
    """Return the configuration of the model that looks segmenters up.

    SEGMENTER to DESCRIPTION (JSON; all names for an empty one), and with IMAGE to what the networks are given.
    """
    return model_config(
        Model(
            name=SEGMENTERS,
            backend="python",
            inputs=(replace(IMAGE_TENSOR, optional=True), _NAME),
            outputs=(
                Tensor(name=t.PIXELS, dtype="FP32", dims=(-1, 3, -1, -1)),
                SIZE_TENSOR,
                STARTED_TENSOR,
                GUIDE_IMAGE_TENSOR,
                Tensor(name=t.TEXT, dtype="FP32", dims=(-1, -1, -1)),
                Tensor(name=t.NOISE, dtype="FP32", dims=(-1, -1, -1, -1)),
                Tensor(name=t.PART_MASK, dtype="FP32", dims=(-1, -1)),
                Tensor(name=t.POSTPROCESS, dtype="FP32", dims=(-1, -1)),
                _DESCRIBED,
            ),
            parameters={"store": STORE},
        )
    )


def shared_unet_config(group: Group) -> str:
    """Return the configuration of the group's UNet: LATENTS and what a segmenter's file holds to its maps.

    CROSS and ACCUMULATED (batch, P, h, w), or SELF (batch, N, N).
    """
    side, pixels = group.latent_size, group.latent_size**2
    each_part = (group.most_parts, side, side)
    cross, maps, _ = map_names(group.variant)
    return model_config(
        Model(
            name=group.unet,
            backend=group.variant.backend,
            max_batch_size=MAX_BATCH,
            inputs=(latents(group.latent_channels, side), *unet_inputs(group)),
            outputs=(
                Tensor(name=cross, dtype="FP32", dims=each_part),
                Tensor(name=maps, dtype="FP32", dims=each_part if group.variant.weighted else (pixels, pixels)),
            ),
            delay_us=UNET_DELAY_US,
            warm_up=warm_up(),
        )
    )


def unet_inputs(group: Group) -> tuple[Tensor, ...]:
    """Return what the shared UNet takes beside LATENTS."""
    side, channels = group.latent_size, group.latent_channels
    return (
        Tensor(name=t.TEXT, dtype="FP32", dims=(TOKENS, group.text_width)),
        Tensor(name=t.NOISE, dtype="FP32", dims=(channels * group.noise_samples, side, side)),
        Tensor(name=t.PART_MASK, dtype="FP32", dims=(group.most_parts,)),
    )


def shared_ensemble_config(group: Group, versions: Versions, parameters: Mapping[str, str]) -> str:
    """Return the configuration of the group's ensemble, pinned to ``versions``.

    IMAGE and SEGMENTER to what `was` gives, and the DESCRIPTION that it goes with.
    ``versions.preprocess`` is that of `segmenters`.
    """
    maps, given = map_names(group.variant)[:2], (t.TEXT, t.NOISE, t.PART_MASK)
    rest = (t.POSTPROCESS, t.PART_MASK, t.SIZE, t.STARTED, t.GUIDE_IMAGE)
    steps = (
        Step(
            model=SEGMENTERS,
            version=versions.preprocess,
            inputs=(IMAGE_TENSOR.name, t.SEGMENTER),
            outputs=(
                t.PIXELS,
                t.SIZE,
                t.STARTED,
                t.GUIDE_IMAGE,
                *given,
                t.POSTPROCESS,
                t.DESCRIPTION,
            ),
        ),
        Step(
            model=group.variant.encoder_model,
            version=versions.vae_encoder,
            inputs=(t.PIXELS,),
            outputs=(t.LATENTS,),
        ),
        Step(model=group.unet, version=versions.unet, inputs=(t.LATENTS, *given), outputs=maps),
        Step(model=WAS, version=versions.was, inputs=(*maps, *rest), outputs=tuple(tensor.name for tensor in ANSWER)),
    )
    return model_config(
        Model(
            name=group.name,
            backend=None,
            inputs=(IMAGE_TENSOR, _NAME),
            outputs=(*ANSWER, _DESCRIBED),
            steps=steps,
            parameters={**parameters, **group.variant.parameters(), "form": "shared"},
        )
    )


_NAME = Tensor(name=t.SEGMENTER, dtype="STRING", dims=(1,))
_DESCRIBED = Tensor(name=t.DESCRIPTION, dtype="STRING", dims=(1,))
