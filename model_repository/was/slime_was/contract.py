"""The served models' contract: tensor names, types and shapes, written once; it renders Triton's ``config.pbtxt``.

    IMAGE > preprocess > PIXELS > vae_encoder > LATENTS > NAME_unet > CROSS, SELF, WEIGHTING > was > MASK, SCORES
                       > SIZE, and FITTED where the image guides the upsampling ------------->

One linear ensemble per segmenter. Only the two networks batch; the ends take one image of any size per request.
Dimensions never include the batch of a batching model; -1 is any size. K parts, S image side, h x w map, N = h*w.
Segmenters that read their images another way (channel order, patches) have a preprocess model of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from slime_was.options import LENGTH, Weighting

IMAGE, SIZE, PIXELS, LATENTS = "IMAGE", "SIZE", "PIXELS", "LATENTS"
FITTED = "FITTED"
CROSS, SELF, WEIGHTING = "CROSS", "SELF", "WEIGHTING"
MASK, SCORES = "MASK", "SCORES"

PREPROCESS, VAE_ENCODER, WAS = "preprocess", "vae_encoder", "was"
UNET_SUFFIX = "_unet"

MAX_PARTS = 77
MAX_BATCH = 8
# What the committed preprocess/config.pbtxt carries; a repository of another backbone has its own.
DEFAULT_IMAGE_SIZE = 512

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_DTYPES = ("STRING", "UINT8", "INT32", "FP32")


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One input or output; ``dtype`` in Triton's words without TYPE_."""

    name: str
    dtype: str
    dims: tuple[int, ...]
    optional: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise ValueError(f"tensor {self.name}: got dtype {self.dtype}, expected one of {', '.join(_DTYPES)}")
        if not self.dims or any(dim == 0 or dim < -1 for dim in self.dims):
            raise ValueError(f"tensor {self.name}: got dims {self.dims}, expected positive sizes or -1")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One model of the ensemble: the exact version, and the tensors, which keep their names throughout."""

    model: str
    version: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


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
class Model:
    """What ``config.pbtxt`` says of one model. An ensemble has steps and no backend."""

    name: str
    backend: str | None
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_batch_size: int = 0
    steps: tuple[Step, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"model name: got {self.name!r}, expected letters, digits, _ and - (at most 64)")
        if (self.backend is None) != bool(self.steps):
            raise ValueError(f"model {self.name}: expected either a backend or the steps of an ensemble")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a segmenter's images become the networks' input."""

    image_size: int = DEFAULT_IMAGE_SIZE
    channel_order: str = "rgb"
    weighting: Weighting = field(default_factory=Weighting)

    def __post_init__(self) -> None:
        if len(self.weighting.crops) > MAX_BATCH:
            raise ValueError(
                f"patches: got {len(self.weighting.crops)} crops of an image, expected at most {MAX_BATCH}, "
                "the largest batch that is served; optimise with fewer patches"
            )

    @property
    def model(self) -> str:
        """The preprocess model that reads so: `preprocess`, or a name that tells what is different."""
        words = [PREPROCESS]
        if self.channel_order != "rgb":
            words.append(self.channel_order)
        if self.weighting.patches > 1:
            words.append(f"{self.weighting.patches}x{self.weighting.crop_side}")
        return "_".join(words)


def unet_name(segmenter: str) -> str:
    """The model behind a segmenter's maps. Raises ValueError where the segmenter's name cannot be served."""
    reserved = segmenter in (VAE_ENCODER, WAS) or is_preprocess(segmenter) or segmenter.endswith(UNET_SUFFIX)
    if reserved or not _NAME.fullmatch(segmenter):
        raise ValueError(
            f"segmenter name: got {segmenter!r}, expected letters, digits, _ and - (at most 64), "
            f"not {PREPROCESS} or {PREPROCESS}_…, {VAE_ENCODER}, {WAS} nor ending in {UNET_SUFFIX}; choose another name"
        )
    return segmenter + UNET_SUFFIX


def is_preprocess(model: str) -> bool:
    """Whether a model of this name reads images."""
    return model == PREPROCESS or model.startswith(f"{PREPROCESS}_")


def preprocess_config(reading: Reading | None = None) -> str:
    """Encoded image to the backbone's input, in [-1, 1], and SIZE (height, width) upright.

    PIXELS (crops, 3, S, S) for the networks; FITTED (3, S, S) the whole image, whatever the crops.
    """
    reading = reading or Reading()
    crops = reading.weighting.crops if reading.weighting.patches > 1 else ()
    return model_config(
        Model(
            name=reading.model,
            backend="python",
            inputs=(_IMAGE,),
            outputs=(Tensor(name=PIXELS, dtype="FP32", dims=(-1, 3, -1, -1)), _SIZE, _FITTED),
            parameters={
                "image_size": str(reading.image_size),
                "channel_order": reading.channel_order,
                "crops": json.dumps(crops),
                "crop_side": str(reading.weighting.crop_side if crops else reading.image_size),
            },
        )
    )


def vae_encoder_config(*, backbone: str, image_size: int, latent_channels: int, latent_size: int) -> str:
    """PIXELS (batch, 3, S, S) to LATENTS (batch, C, h, w): posterior mean times scaling factor.

    ``backbone``: content hash of the repository's one backbone.
    """
    return model_config(
        Model(
            name=VAE_ENCODER,
            backend="onnxruntime",
            max_batch_size=MAX_BATCH,
            inputs=(Tensor(name=PIXELS, dtype="FP32", dims=(3, image_size, image_size)),),
            outputs=(_latents(latent_channels, latent_size),),
            parameters={"backbone": backbone},
        )
    )


def unet_config(
    *,
    segmenter: str,
    parts: int,
    latent_channels: int,
    latent_size: int,
    parameters: Mapping[str, str] | None = None,
) -> str:
    """LATENTS (batch, C, h, w) to CROSS (batch, K, h, w), SELF (batch, N, N) and WEIGHTING (batch, LENGTH), baked."""
    if not 2 <= parts <= MAX_PARTS:
        raise ValueError(f"parts: got {parts}, expected 2 to {MAX_PARTS} with the background; paint fewer parts")
    pixels = latent_size * latent_size
    return model_config(
        Model(
            name=unet_name(segmenter),
            backend="onnxruntime",
            max_batch_size=MAX_BATCH,
            inputs=(_latents(latent_channels, latent_size),),
            outputs=(
                # K is left open: all versions of a model share this file, and the next may have more parts.
                Tensor(name=CROSS, dtype="FP32", dims=(-1, latent_size, latent_size)),
                Tensor(name=SELF, dtype="FP32", dims=(pixels, pixels)),
                Tensor(name=WEIGHTING, dtype="FP32", dims=(LENGTH,)),
            ),
            parameters=parameters or {},
        )
    )


def was_config() -> str:
    """Maps of one image's crops, their weighting, SIZE and maybe FITTED to MASK (H, W) and SCORES (K, h, w)."""
    return model_config(
        Model(
            name=WAS,
            backend="python",
            inputs=(
                Tensor(name=CROSS, dtype="FP32", dims=(-1, -1, -1, -1)),
                Tensor(name=SELF, dtype="FP32", dims=(-1, -1, -1)),
                Tensor(name=WEIGHTING, dtype="FP32", dims=(-1, -1)),
                _SIZE,
                replace(_FITTED, optional=True),
            ),
            outputs=_ANSWER,
        )
    )


def ensemble_config(
    *, segmenter: str, versions: Versions, parameters: Mapping[str, str], reading: Reading | None = None
) -> str:
    """The segmenter itself: IMAGE to MASK and SCORES, pinned to ``versions``.

    ``parameters``: what the client shows and checks (parts, colours, form, hashes).
    """
    reading = reading or Reading()
    guide = (FITTED,) if reading.weighting.guide > 0 else ()
    maps = (CROSS, SELF, WEIGHTING)
    steps = (
        Step(model=reading.model, version=versions.preprocess, inputs=(IMAGE,), outputs=(PIXELS, SIZE, *guide)),
        Step(model=VAE_ENCODER, version=versions.vae_encoder, inputs=(PIXELS,), outputs=(LATENTS,)),
        Step(model=unet_name(segmenter), version=versions.unet, inputs=(LATENTS,), outputs=maps),
        Step(model=WAS, version=versions.was, inputs=(*maps, SIZE, *guide), outputs=(MASK, SCORES)),
    )
    return model_config(
        Model(
            name=segmenter,
            backend=None,
            inputs=(_IMAGE,),
            outputs=_ANSWER,
            steps=steps,
            parameters=parameters,
        )
    )


def model_config(model: Model) -> str:
    """The text of ``config.pbtxt``."""
    lines = ["# Generated from slime_was/contract.py; do not edit.", f"name: {_quoted(model.name)}"]
    lines += [f"backend: {_quoted(model.backend)}"] if model.backend else ['platform: "ensemble"']
    lines.append(f"max_batch_size: {model.max_batch_size}")
    # The latest two: the version an ensemble is pinned to serves on while the next one is published, and the
    # ensemble's own last version answers until the next is ready. An ensemble that served one specific version had
    # moments with none.
    lines.append("version_policy { latest { num_versions: 2 } }")
    lines += [_tensor("input", tensor) for tensor in model.inputs]
    lines += [_tensor("output", tensor) for tensor in model.outputs]
    if model.max_batch_size:
        lines.append("dynamic_batching {}")
    if model.backend:
        # Networks run on the GPU where there is one; Triton starts two processes of a kind without a count.
        kind = ", kind: KIND_CPU" if model.backend == "python" else ""
        lines.append(f"instance_group [{{ count: 1{kind} }}]")
    if model.steps:
        lines += ["ensemble_scheduling {", *map(_step, model.steps), "}"]
    for key, value in model.parameters.items():
        lines.append(f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}")
    return "\n".join(lines) + "\n"


def _latents(channels: int, size: int) -> Tensor:
    return Tensor(name=LATENTS, dtype="FP32", dims=(channels, size, size))


def _tensor(direction: str, tensor: Tensor) -> str:
    dims = ", ".join(map(str, tensor.dims))
    optional = ", optional: true" if tensor.optional else ""
    return f"{direction} [{{ name: {_quoted(tensor.name)}, data_type: TYPE_{tensor.dtype}, dims: [{dims}]{optional} }}]"


def _step(step: Step) -> str:
    lines = [f"    model_name: {_quoted(step.model)}", f"    model_version: {step.version}"]
    lines += [f"    input_map {{ key: {_quoted(name)} value: {_quoted(name)} }}" for name in step.inputs]
    lines += [f"    output_map {{ key: {_quoted(name)} value: {_quoted(name)} }}" for name in step.outputs]
    return "\n".join(["  step {", *lines, "  }"])


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


_IMAGE = Tensor(name=IMAGE, dtype="STRING", dims=(1,))
_FITTED = Tensor(name=FITTED, dtype="FP32", dims=(3, -1, -1))
_SIZE = Tensor(name=SIZE, dtype="INT32", dims=(2,))
_ANSWER = (
    Tensor(name=MASK, dtype="UINT8", dims=(-1, -1)),
    Tensor(name=SCORES, dtype="FP32", dims=(-1, -1, -1)),
)
