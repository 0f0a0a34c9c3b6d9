"""One side of benchmarks.optimize: a process of its own, so that its memory is its own, that takes a step when told.

    python -m benchmarks.optimize_side published|ours|forecast BACKBONE --pixels 512 --parts 6 ...

Each line on standard input is the name of a lesson: `published` there, `guided`, `plain` or either with `_reused` here.
Each answer is a line of JSON on standard output: first what it runs on, then seconds of each step, and when the input
ends its peak memory.
`forecast` only tells what the published step would need, counted without memory for it.

Shape suffixes: B batch, S image side, h, w latent sides, T tokens, D width, K parts, H, W image sides.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from benchmarks.published_step import PublishedStep, sampled
from benchmarks.watch import Watch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from slime_image import fit
from slime_optimize.backbone import EMBEDDED, TOKENS, Backbone, embedded_folder, load_backbone
from slime_optimize.data.examples import Example
from slime_optimize.method.attention import Layers
from slime_optimize.method.losses import Losses
from slime_optimize.method.step import Stepper
from slime_optimize.method.train import initial_text
from slime_optimize.method.views import views
from slime_optimize.presets import PAPER, REFERENCE
from slime_optimize.segmenter import in_place, library_versions
from slime_optimize.settings import Settings

VIEW_USES = 3  # steps that share an encoded view, where that is measured
_LIBRARIES_BYTES = 6e8  # PyTorch and diffusers, before they hold any tensor
_ENCODER_BYTES = 1.4e8  # the VAE's encoder


class Lesson(ABC):
    """Embeddings that are learned, step by step; `seconds` are of the last one: encoding, and all the rest."""

    def __init__(self, backbone: Backbone, learned: list[Tensor], settings: Settings) -> None:
        self.device = backbone.device
        self._learned = learned
        self._adam = torch.optim.Adam(learned, lr=settings.learning_rate)

    @abstractmethod
    def encoded(self) -> tuple[Tensor, Tensor]:
        """Latents (1,4,h,w) and mask (1,h,w) of the next view."""

    @abstractmethod
    def losses(self, latents_14hw: Tensor, mask_1hw: Tensor) -> Losses:
        """Of one view."""

    def step(self) -> dict[str, float]:
        """One whole step; its seconds."""
        begin = self._now()
        latents_14hw, mask_1hw = self.encoded()
        middle = self._now()
        self._adam.zero_grad(set_to_none=True)
        torch.autograd.backward(self.losses(latents_14hw, mask_1hw).total)
        self._adam.step()
        return {"encode": middle - begin, "learn": self._now() - middle}

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


class Published(Lesson):
    """The published form. Its views are made elsewhere (there, by other processes), so that it only encodes."""

    def __init__(self, backbone: Backbone, parts: int) -> None:
        text_1TD = initial_text(backbone, REFERENCE, parts).to(backbone.dtype)
        learned = [text_1TD[:, [part]].clone().requires_grad_(True) for part in range(1, parts)]
        super().__init__(backbone, learned, REFERENCE)
        self._vae = backbone.vae
        del self._vae.decoder  # as there
        self._ends = text_1TD[:, :1], text_1TD[:, parts:]
        self._step = PublishedStep(
            unet=backbone.unet,
            scheduler=backbone.scheduler,
            empty_1TD=backbone.encode_text(""),
            parts=parts,
        )
        image = example(backbone.image_size, parts)
        self._pixels_13SS = torch.from_numpy(fit(image.image_HW3, backbone.image_size)).to(self.device)[None]
        mask_SS = torch.from_numpy(image.mask_HW).long()
        shrink = backbone.image_size // backbone.latent_size
        self._mask_1hw = mask_SS[None, ::shrink, ::shrink].contiguous().to(self.device)

    def encoded(self) -> tuple[Tensor, Tensor]:
        return sampled(self._vae, self._pixels_13SS), self._mask_1hw

    def losses(self, latents_14hw: Tensor, mask_1hw: Tensor) -> Losses:
        low, high = REFERENCE.t_opt
        timestep_1 = torch.randint(low, high + 1, (1,)).to(self.device)
        text_1TD = torch.cat([self._ends[0], *self._learned, self._ends[1]], dim=1)
        return self._step.losses(latents_14hw, torch.randn_like(latents_14hw), timestep_1, mask_1hw[0], text_1TD)


class Ours(Lesson):
    """Our step, views and their encoding ahead included. `steps` are those after the first, the warm-up."""

    def __init__(self, backbone: Backbone, parts: int, settings: Settings, steps: int) -> None:
        self._start_1TD = initial_text(backbone, settings, parts)
        super().__init__(backbone, [self._start_1TD[0, 1:parts].clone().requires_grad_(True)], settings)
        self._stepper = Stepper(backbone=backbone, settings=settings, parts=parts, seed=0)
        self._stepper.empty_prompt  # noqa: B018  encoded once in a run, and not while a step is measured
        self._views = self._warm_and_then(backbone, example(backbone.image_size, parts), settings, steps)
        self._turn = 0

    @staticmethod
    def _warm_and_then(
        backbone: Backbone, image: Example, settings: Settings, steps: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        # Apart, so that the steps that count pay for all that is encoded for them, and for nothing else.
        yield from views(backbone, [image], settings, 1, 1)
        yield from views(backbone, [image], settings, 0, steps)

    def encoded(self) -> tuple[Tensor, Tensor]:
        return next(self._views)

    def losses(self, latents_14hw: Tensor, mask_1hw: Tensor) -> Losses:
        self._turn += 1
        return self._stepper.losses(latents_14hw, mask_1hw, in_place(self._start_1TD, self._learned[0]), self._turn)


def example(side: int, parts: int) -> Example:
    """Upright stripes of noise around colours of their own, one for each part."""
    chance = np.random.default_rng(0)
    mask_HW = np.broadcast_to(np.arange(side) * parts // side, (side, side)).astype(np.uint8)
    colours_K3 = chance.integers(40, 215, (parts, 3))
    image_HW3 = (colours_K3[mask_HW] + chance.integers(-40, 40, (side, side, 3))).astype(np.uint8)
    return Example(name="stripes", image_HW3=image_HW3, mask_HW=mask_HW, digest="0" * 64)


def lessons(side: str, backbone: Backbone, parts: int, steps: int) -> dict[str, Lesson]:
    """By the names that they are told by."""
    if side == "published":
        return {"published": Published(backbone, parts)}
    chosen = {"guided": REFERENCE, "plain": PAPER}
    chosen |= {f"{name}_reused": replace(settings, steps_per_view=VIEW_USES) for name, settings in chosen.items()}
    return {name: Ours(backbone, parts, settings, steps) for name, settings in chosen.items()}


def sized(backbone: Backbone, pixels: int) -> Backbone:
    """The backbone for images of `pixels` a side."""
    shrink = backbone.image_size // backbone.latent_size
    return replace(backbone, image_size=pixels, latent_size=pixels // shrink)


def forecast(backbone: str, pixels: int | None, parts: int) -> dict[str, float]:
    """Pixels of the backbone's images, and bytes that the published step would take at `pixels` (or at its own)."""
    folder = embedded_folder() if backbone == EMBEDDED else Path(backbone)
    vae = json.loads((folder / "vae" / "config.json").read_text())
    shrink = 2 ** (len(vae["block_out_channels"]) - 1)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet"))
        unet.requires_grad_(False).eval()
        native = int(unet.config.sample_size) * shrink
        activations = _activations(unet, (pixels or native) // shrink, parts)
    weights = sum(each.numel() * each.element_size() for each in unet.parameters())
    return {"native": native, "bytes": activations + weights + _ENCODER_BYTES + _LIBRARIES_BYTES}


def _activations(unet: Any, side: int, parts: int) -> int:
    """Peak bytes of one published step, forward and backward. Call it with meta as the device."""
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    width = int(unet.config.cross_attention_dim)
    step = PublishedStep(
        unet=unet, scheduler=scheduler, empty_1TD=torch.empty(1, TOKENS, width), parts=parts, layers=Layers()
    )
    text_1TD = torch.empty(1, TOKENS, width, requires_grad=True)
    latents_14hw, timestep_1 = torch.empty(1, 4, side, side), torch.zeros(1, dtype=torch.long)
    mask_hw = torch.zeros(side, side, dtype=torch.long)
    with Watch() as watch:
        loss = step.losses(latents_14hw, torch.empty_like(latents_14hw), timestep_1, mask_hw, text_1TD).total
        torch.autograd.backward(loss)
    return int(watch.peak_bytes)


def serve(taught: dict[str, Lesson], orders: TextIO, answers: TextIO) -> None:
    """A step of every lesson to warm up, then one for each order."""
    for lesson in taught.values():
        lesson.step()
    device = next(iter(taught.values())).device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    _tell(answers, {"device": _named(device), "threads": torch.get_num_threads(), "versions": library_versions()})
    for order in orders:
        _tell(answers, taught[order.strip()].step())
    _tell(answers, {"peak_bytes": _peak_bytes(device)})


def _tell(answers: TextIO, what: Any) -> None:
    answers.write(json.dumps(what) + "\n")
    answers.flush()


def _named(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else device.type


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    options = _arguments()
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is not an answer
    if options.side == "forecast":
        _tell(answers, forecast(options.backbone, options.pixels, options.parts))
        return
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    backbone = sized(load_backbone(options.backbone, options.device), options.pixels)
    serve(lessons(options.side, backbone, options.parts, options.steps), sys.stdin, answers)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=["published", "ours", "forecast"])
    parser.add_argument("backbone", help="embedded, or a folder in diffusers layout")
    parser.add_argument("--pixels", type=int, help="of an image's side")
    parser.add_argument("--parts", type=int, default=6)
    parser.add_argument("--steps", type=int, default=1, help="how many will be told, after the first")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
