"""One side of benchmarks.pipeline.optimize: a process of its own that takes a training step when it is told to.

    python -m benchmarks.pipeline.optimize_side published|ours|forecast BACKBONE --pixels 512 --parts 6 ...

Each order, {"lesson": NAME}, is answered by the seconds of one step. Side `published` knows the lesson `published`;
side `ours` knows `guided` and `plain`, and both with `_reused`, and on a processor with AMX `plain_bf16` and
`plain_bf16_but_attention`. `forecast` only prints what memory the published step
would need, counted without using it.

Shape suffixes: B batch, S image side, h, w latent sides, T tokens, D width, K parts, H, W image sides.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
import weakref
from abc import ABC, abstractmethod
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from benchmarks.common import command_line
from benchmarks.common.sides import work
from benchmarks.pipeline.published import PublishedStep, sampled
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from slime_export import machine
from slime_image import fit
from slime_optimize.backbone import EMBEDDED, Backbone, embedded_folder, load_backbone
from slime_optimize.backbone_folder import TOKENS
from slime_optimize.data.annotations.example import Example
from slime_optimize.layers import Layers
from slime_optimize.method.augmentation import views
from slime_optimize.method.losses import Losses, Stepper
from slime_optimize.method.precision import BF16, BF16_BUT_ATTENTION, FP32, has_amx
from slime_optimize.method.run import initial_text
from slime_optimize.presets import PAPER, REFERENCE
from slime_optimize.segmenter import in_place, library_versions
from slime_optimize.settings import Settings

VIEW_USES = 3  # steps that share an encoded view, where that is measured
_LIBRARIES_BYTES = 6e8  # PyTorch and diffusers, before they hold any tensor
_ENCODER_BYTES = 1.4e8  # the VAE's encoder


class Lesson(ABC):
    """Embeddings that are learned step by step, with Adam."""

    def __init__(self, backbone: Backbone, learned: list[Tensor], settings: Settings) -> None:
        self.device = backbone.device
        self._learned = learned
        self._adam = torch.optim.Adam(learned, lr=settings.learning_rate)

    @abstractmethod
    def encoded(self) -> tuple[Tensor, Tensor]:
        """Return latents (1,4,h,w) and mask (1,h,w) of the next view."""

    @abstractmethod
    def losses(self, latents_14hw: Tensor, mask_1hw: Tensor) -> Losses:
        """Return the losses of one view."""

    def step(self) -> dict[str, float]:
        """Take one whole step; return its seconds: encoding, and all the rest."""
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
    """The published form. In its code other processes make the views, so that it only encodes."""

    def __init__(self, backbone: Backbone, parts: int) -> None:
        text_1TD = initial_text(backbone, REFERENCE, parts).to(backbone.dtype)
        learned = [text_1TD[:, [part]].clone().requires_grad_(True) for part in range(1, parts)]
        super().__init__(backbone, learned, REFERENCE)
        self._vae = backbone.vae
        del self._vae.decoder  # the published code does not keep it either
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
    """Our step, making views and encoding them ahead included. `steps` are those after the first, the warm-up."""

    def __init__(self, backbone: Backbone, parts: int, settings: Settings, steps: int, precision: str = FP32) -> None:
        self._start_1TD = initial_text(backbone, settings, parts)
        super().__init__(backbone, [self._start_1TD[0, 1:parts].clone().requires_grad_(True)], settings)
        self._stepper = Stepper(backbone=backbone, settings=settings, parts=parts, seed=0, precision=precision)
        self._stepper.empty_prompt  # noqa: B018  encoded once in a run, and not while a step is measured
        # Apart, so that the steps that count pay for all that is encoded for them, and for nothing else.
        examples = [example(backbone.image_size, parts)]
        warm_up, counting = views(backbone, examples, settings, 1, 1), views(backbone, examples, settings, 0, steps)
        self._views = itertools.chain(warm_up, counting)
        self._turn = 0

    def encoded(self) -> tuple[Tensor, Tensor]:
        return next(self._views)

    def losses(self, latents_14hw: Tensor, mask_1hw: Tensor) -> Losses:
        self._turn += 1
        return self._stepper.losses(latents_14hw, mask_1hw, in_place(self._start_1TD, self._learned[0]), self._turn)


def example(side: int, parts: int) -> Example:
    """Return an image of upright stripes, one for each part, with noise around a colour of its own."""
    chance = np.random.default_rng(0)
    mask_HW = np.broadcast_to(np.arange(side) * parts // side, (side, side)).astype(np.uint8)
    colours_K3 = chance.integers(40, 215, (parts, 3))
    image_HW3 = (colours_K3[mask_HW] + chance.integers(-40, 40, (side, side, 3))).astype(np.uint8)
    return Example(name="stripes", image_HW3=image_HW3, mask_HW=mask_HW, digest="0" * 64)


def lessons(side: str, backbone: Backbone, parts: int, steps: int) -> dict[str, Lesson]:
    """Return the lessons of a side by their names."""
    if side == "published":
        return {"published": Published(backbone, parts)}
    chosen = {"guided": REFERENCE, "plain": PAPER}
    chosen |= {f"{name}_reused": replace(settings, steps_per_view=VIEW_USES) for name, settings in chosen.items()}
    ours: dict[str, Lesson] = {name: Ours(backbone, parts, settings, steps) for name, settings in chosen.items()}
    if has_amx():
        lower = {"plain_bf16": BF16, "plain_bf16_but_attention": BF16_BUT_ATTENTION}
        ours |= {name: Ours(backbone, parts, PAPER, steps, precision) for name, precision in lower.items()}
    return ours


def sized(backbone: Backbone, pixels: int) -> Backbone:
    """Return the backbone for images of `pixels` a side."""
    shrink = backbone.image_size // backbone.latent_size
    return replace(backbone, image_size=pixels, latent_size=pixels // shrink)


def forecast(backbone: str, pixels: int | None, parts: int) -> dict[str, float]:
    """Return the side of the backbone's images, and the bytes the published step would take at `pixels`."""
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
    """Return the peak bytes of one published step, forward and backward. Call it with meta as the device."""
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


class Watch(TorchDispatchMode):
    """Watch every tensor that PyTorch makes inside a with-block, forward and backward, on meta tensors too.

    `largest`: elements of the largest tensor made. `peak_bytes`: most bytes alive at once of those made.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest = 0
        self.peak_bytes = 0
        self._alive_bytes = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            # An expanded view names more elements than there are.
            if isinstance(made, Tensor):
                storage = made.untyped_storage()
                size, key = storage.nbytes(), storage._cdata
                self.largest = max(self.largest, min(made.numel(), size // made.element_size()))
                if key not in self._known:
                    self._known.add(key)
                    self._alive_bytes += size
                    self.peak_bytes = max(self.peak_bytes, self._alive_bytes)
                    weakref.finalize(storage, self._forget, key, size)
        return result

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._alive_bytes -= size


def serve(taught: dict[str, Lesson], orders: TextIO | None = None, answers: TextIO | None = None) -> None:
    """Take a step of every lesson to warm up, then one for each order, {"lesson": NAME}."""
    for lesson in taught.values():
        lesson.step()
    on_gpu = next(iter(taught.values())).device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    device = torch.cuda.get_device_name() if on_gpu else "cpu"
    ready = {"device": device, "threads": torch.get_num_threads(), "versions": library_versions()}
    peak_bytes = torch.cuda.max_memory_allocated if on_gpu else machine.peak_bytes
    work(ready, lambda order: taught[order["lesson"]].step(), lambda: {"peak_bytes": peak_bytes()}, orders, answers)


def main() -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("side", choices=["published", "ours", "forecast"])
    parser.add_argument("backbone", help="embedded, or a folder in diffusers layout")
    parser.add_argument("--pixels", type=int, help="of an image's side")
    parser.add_argument("--parts", type=int, default=6)
    parser.add_argument("--steps", type=int, default=1, help="how many will be told, after the first")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.side == "forecast":
        with redirect_stdout(sys.stderr):
            told = forecast(options.backbone, options.pixels, options.parts)
        print(json.dumps(told))
        return
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    backbone = sized(load_backbone(options.backbone, options.device), options.pixels)
    serve(lessons(options.side, backbone, options.parts, options.steps))


if __name__ == "__main__":
    main()
