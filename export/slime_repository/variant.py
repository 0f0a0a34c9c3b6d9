"""Says how networks were exported, in the words of `export/build.py`, and which models' names follow from that.

Two versions of one Triton model share its config.pbtxt, so networks with other outputs, or that something else runs,
are models of their own. A precision is not, where the file holds it: inputs and outputs stay float32. OpenVINO is told
in the configuration to compute in bf16, so there it is.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from slime_repository.config import OPENVINO

MAPS = ("averaged", "weighted")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
ENCODERS = ("vae", "tiny")
FORMATS = ("onnx", "tensorrt")

VAE_ENCODER, TINY_ENCODER = "vae_encoder", "tiny_encoder"
UNET_SUFFIX = "_unet"

_BACKENDS = {"onnx": "onnxruntime", OPENVINO: "onnxruntime", "tensorrt": "tensorrt"}
_OF_OPENVINO = ("fp32", "bf16", "int8")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way of exporting. averaged: CROSS and SELF leave the UNet; weighted: CROSS and ACCUMULATED, no N x N map.

    format: onnx, tensorrt, or openvino, which is an ONNX file that OpenVINO runs. Raises ValueError for other words.
    """

    maps: str = "averaged"
    precision: str = "fp32"
    encoder: str = "vae"
    format: str = "onnx"

    def __post_init__(self) -> None:
        words = {"maps": MAPS, "precision": PRECISIONS, "encoder": ENCODERS, "format": (*FORMATS, OPENVINO)}
        for name, known in words.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected one of {', '.join(known)}")
        if self.format == OPENVINO and self.precision not in _OF_OPENVINO:
            raise ValueError(
                f"precision {self.precision}: OpenVINO has no gain from it, expected one of {', '.join(_OF_OPENVINO)}"
            )

    @property
    def weighted(self) -> bool:
        """Return whether the UNet itself weights."""
        return self.maps == "weighted"

    @property
    def backend(self) -> str:
        """Return Triton's backend for the networks."""
        return _BACKENDS[self.format]

    @property
    def encoder_model(self) -> str:
        """Return the encoder that serves beside this UNet."""
        return encoder_name(self.encoder, self.precision, self.format)

    @property
    def unet_suffix(self) -> str:
        """Return what the UNet's name has after the segmenter's."""
        in_bf16 = self.format == OPENVINO and self.precision == "bf16"
        return UNET_SUFFIX + "_weighted" * self.weighted + "_bf16" * in_bf16 + _of_format(self.format)

    def parameters(self) -> dict[str, str]:
        """Return the fields by name, for the ensemble's parameters."""
        return asdict(self)


def encoder_name(encoder: str = "vae", precision: str = "fp32", format: str = "onnx") -> str:
    """Return the model that encodes images; a repository may hold several. int8 UNets keep an fp32 one."""
    name = {"vae": VAE_ENCODER, "tiny": TINY_ENCODER}[encoder]
    return name + (f"_{precision}" if precision in ("fp16", "bf16") else "") + _of_format(format)


def is_encoder(model: str) -> bool:
    """Return whether a model of this name encodes images."""
    return model in _ENCODERS


def is_unet(model: str) -> bool:
    """Return whether a model of this name gives a segmenter's maps."""
    return model.endswith(UNET_SUFFIXES)


def _of_format(format: str) -> str:
    return "" if format == "onnx" else f"_{format}"


_ENCODERS = {encoder_name(e, p, f) for e in ENCODERS for p in PRECISIONS for f in (*FORMATS, OPENVINO)}
_NAMED = [("onnx", "fp32"), ("tensorrt", "fp32"), (OPENVINO, "fp32"), (OPENVINO, "bf16")]
UNET_SUFFIXES = tuple(
    Variant(maps=maps, format=format, precision=precision).unet_suffix for maps in MAPS for format, precision in _NAMED
)
