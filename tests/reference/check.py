"""Holds the `reference` preset against recordings of what the method's published code computes.

    python tests/reference/check.py tests/reference/recordings/sd21_k6

A recording is a folder of unet_config.json, unet.safetensors and reference.npz (README.md beside the recordings tells
what the arrays are). Everything is computed in float64. Prints a line for each quantity; exits 1 where one is past
its tolerance, 2 where the folder is no recording.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor

from slime_optimize.backbone import Backbone
from slime_optimize.method.attention import attend, attention_maps
from slime_optimize.method.losses import Stepper, losses
from slime_optimize.method.prediction import Predictor
from slime_optimize.presets import REFERENCE
from slime_optimize.segmenter import Segmenter
from slime_optimize.settings import Settings
from slime_was import finished, segment

LARGEST = 1e-5  # difference, as a share of the largest value
AGREEMENT = 0.9999  # of a mask's pixels
SIDE = 512


@dataclass(frozen=True, kw_only=True)
class Line:
    """One quantity: how far off, and how far it may be."""

    name: str
    off: float
    allowed: float

    @property
    def holds(self) -> bool:
        return self.off <= self.allowed  # NaN does not

    def __str__(self) -> str:
        return f"{'ok  ' if self.holds else 'OFF '} {self.name:<28} {self.off:.2e} of {self.allowed:.0e}"


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A folder's UNet and arrays, as a backbone whose VAE is the recorded stand-in."""

    folder: Path
    backbone: Backbone
    arrays: dict[str, Any]

    @classmethod
    def load(cls, folder: Path) -> Recording:
        with np.load(folder / "reference.npz") as stored:
            arrays = dict(stored)
        unet = UNet2DConditionModel(**_unet_config(folder))
        unet.load_state_dict(load_file(folder / "unet.safetensors"), strict=True)
        unet = unet.double().eval().requires_grad_(False)
        return cls(folder=folder, backbone=_backbone(unet, arrays), arrays=arrays)

    def tensor(self, name: str) -> Tensor:
        """The array of that name, float64 where it is a float."""
        tensor = torch.from_numpy(self.arrays[name])
        return tensor.double() if tensor.is_floating_point() else tensor

    @property
    def parts(self) -> int:
        return int(self.arrays["num_parts"])

    def predictor(self, **changes: Any) -> Predictor:
        """The recorded embeddings under the reference preset, with `changes` to its settings."""
        settings = REFERENCE.changed({"t_test": int(self.arrays["test_t"]), **changes})
        return Predictor(_segmenter(self, settings), self.backbone)


def check(folder: Path) -> list[Line]:
    """Every quantity of a recording."""
    recording = Recording.load(folder)
    return [line for stage in (maps, masks, training) for line in stage(recording)]


def maps(recording: Recording) -> Iterator[Line]:
    """At test time: cross maps, each one's maximum, WAS maps, rows of the self map."""
    unet, timestep = recording.backbone.unet, torch.tensor(int(recording.arrays["test_t"]))
    noised = recording.backbone.add_noise(recording.tensor("latents"), recording.tensor("noise"), timestep)
    inputs = (unet, noised, timestep, recording.tensor("text_embedding"), recording.parts, REFERENCE.layers)
    with torch.no_grad():
        light = attend(*inputs)
        yield _far("cross maps", light.cross_BPhw[0], recording.tensor("test_cross"))
        yield _far("cross maxima", light.cross_BPhw[0].amax((1, 2)), recording.tensor("test_cross_max"))
        yield _far("WAS maps", light.accumulate(light.cross_BPhw)[0], recording.tensor("test_was"))
        full = attention_maps(*inputs)
    yield _far("cross maps, as exported", full.cross_BPhw[0], recording.tensor("test_cross"))
    yield _far("self rows", full.self_BNN[0, recording.tensor("self_rows_index")], recording.tensor("self_rows"))


def masks(recording: Recording) -> Iterator[Line]:
    """At test time: the whole image at two thresholds, and in patches."""
    for threshold in (0.0, 0.06):
        predictor = recording.predictor(threshold=threshold)
        cross, was = predictor.maps(recording.tensor("latents"))
        scores = finished(cross, was, predictor.segmenter.settings.postprocess(SIDE))
        name = f"test_mask_thr{threshold}"
        yield _differing(f"mask, threshold {threshold}", segment(scores, SIDE, SIDE).numpy(), recording.arrays[name])
    patched = recording.predictor(threshold=0.0, patches=2, patch_side=400 / SIDE)
    # The published code reads images as BGR, and so does its preset: what it was given is turned round.
    image_HW3 = np.ascontiguousarray(recording.arrays["patch_image_u8"][0, ::-1].transpose(1, 2, 0))
    mask = recording.arrays["test_mask_patched_2x400_thr0.0"]
    yield _differing("mask, 2 x 2 patches", patched.mask(image_HW3), mask)


def training(recording: Recording) -> Iterator[Line]:
    """One training step: logits, the three losses and their sum, the gradient of the learned rows."""
    parts, backbone = recording.parts, recording.backbone
    text_1TD = recording.tensor("text_embedding")
    learned_KD = text_1TD[:, 1:parts].clone().requires_grad_(True)
    text_1TD = torch.cat([text_1TD[:, :1], learned_KD, text_1TD[:, parts:]], dim=1)
    timestep_1 = torch.tensor([int(recording.arrays["train_t"])])
    latents, noise = recording.tensor("latents"), recording.tensor("noise")
    stepper = Stepper(backbone=backbone, settings=REFERENCE, parts=parts, seed=0)
    answer = stepper.answer(backbone.add_noise(latents, noise, timestep_1), timestep_1, text_1TD)
    result = losses(answer, recording.tensor("mask").long()[None], noise, REFERENCE)
    torch.autograd.backward(result.total)
    assert learned_KD.grad is not None
    yield _far("logits", answer.logits_BPhw[0], recording.tensor("train_logits"))
    yield _far("loss 1, cross entropy", result.cross_entropy, recording.tensor("train_loss1"))
    yield _far("loss 2, WAS", result.was, recording.tensor("train_loss2"))
    yield _far("diffusion loss", result.diffusion, recording.tensor("train_sd_loss"))
    yield _far("loss", result.total, recording.tensor("train_loss"))
    yield _far("gradient", learned_KD.grad, recording.tensor("train_grad"))


def _far(name: str, got: Tensor, expected: Tensor) -> Line:
    off = (got.detach() - expected).abs().max() / expected.abs().max()
    return Line(name=name, off=float(off), allowed=LARGEST)


def _differing(name: str, got: Any, expected: Any) -> Line:
    return Line(name=name, off=float((got != expected).mean()), allowed=1 - AGREEMENT)


def _unet_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "unet_config.json").read_text())
    heads = config["attention_head_dim"]
    return config | {"attention_head_dim": tuple(heads) if isinstance(heads, list) else heads}


@dataclass(frozen=True)
class _RecordedVAE:
    """In the VAE's place: latents are a fixed mixture of the colours' means over 8 x 8 pixels."""

    mixture_43: Tensor
    config: Any = field(default_factory=lambda: SimpleNamespace(scaling_factor=1.0))

    def encode(self, pixels_B3SS: Tensor) -> Any:
        means = torch.nn.functional.adaptive_avg_pool2d(pixels_B3SS.double(), 64)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=torch.einsum("oc,bchw->bohw", self.mixture_43, means)))


class _RecordedText:
    """In the text encoder's place: knows the embedding of the empty prompt."""

    def __init__(self, empty_1TD: Tensor) -> None:
        self.empty_1TD = empty_1TD

    def __call__(self, _ids: Tensor) -> tuple[Tensor]:
        return (self.empty_1TD,)


def _backbone(unet: Any, arrays: dict[str, Any]) -> Backbone:
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    empty = torch.from_numpy(arrays["uncond_embedding"]).double()
    return Backbone(
        id="recording",
        hash="recording",
        unet=unet,
        vae=_RecordedVAE(torch.from_numpy(arrays["patch_encoder_4x3"]).double()),
        text_encoder=_RecordedText(empty),
        tokenizer=lambda *_, **__: SimpleNamespace(input_ids=torch.zeros(1, 77, dtype=torch.long)),
        scheduler=scheduler,
        image_size=SIDE,
        latent_size=64,
        recommended={},
    )


def _segmenter(recording: Recording, settings: Settings) -> Segmenter:
    parts = recording.parts
    return Segmenter(
        text_embedding=recording.tensor("text_embedding"),
        noise=recording.tensor("noise"),
        parts=tuple(f"part {i}" for i in range(parts)),
        colours=tuple((i, i, i) for i in range(parts)),
        backbone_id="recording",
        backbone_hash="recording",
        image_size=SIDE,
        latent_size=64,
        settings=settings,
        preset="reference",
        seed=0,
    )


def main(argv: Sequence[str] | None = None, checking: Callable[[Path], list[Line]] = check) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="+", help="recordings")
    off = 0
    for folder in parser.parse_args(argv).folder:
        try:
            lines = checking(folder)
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            print(f"error: recording {folder}: {str(error).splitlines()[0]}", file=sys.stderr)
            return 2
        print(folder, *lines, sep="\n")
        off += sum(not line.holds for line in lines)
    print(f"{off} past tolerance")
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
