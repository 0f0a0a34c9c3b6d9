"""The two variants in PyTorch: the published form, and ours, from bytes to masks."""

from __future__ import annotations

import argparse
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from benchmarks.pictures import encoded
from benchmarks.pipeline_side import Mask, Stages, Variant
from benchmarks.published_inference import PublishedInference
from torch.utils.flop_counter import FlopCounterMode

from slime_optimize.method.predict import Predictor, load_predictor
from slime_optimize.segmenter import library_versions
from slime_was import finished, segment, sharpened


class _Synchronised(Stages):
    def wait(self) -> None:
        torch.cuda.synchronize()


class _Torch(Variant):
    def __init__(self, options: argparse.Namespace) -> None:
        torch.set_num_threads(options.threads)
        torch.manual_seed(0)
        self.predictor: Predictor = load_predictor(options.segmenter, options.device, options.backbone)
        self.image_size = self.predictor.backbone.image_size
        self.device = self.predictor.backbone.device
        self.postprocess = self.predictor.segmenter.settings.postprocess(self.image_size)
        del self.predictor.backbone.vae.decoder  # there, too, it is not kept

    @property
    def about(self) -> dict[str, Any]:
        device = torch.cuda.get_device_name() if self.device.type == "cuda" else self.device.type
        return {"device": device, "threads": torch.get_num_threads(), "versions": library_versions()}

    def stages(self) -> Stages:
        return _Synchronised() if self.device.type == "cuda" else Stages()

    def count(self) -> int:
        file = encoded(self.image_size, 0)
        attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        with FlopCounterMode(display=False, custom_mapping={attention: _attention_flops}) as counter:
            self.masks([file], self.stages())
        return int(counter.get_total_flops()) // 2

    def peak_bytes(self) -> int:
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated())
        return super().peak_bytes()

    @abstractmethod
    def masks(self, files: Sequence[bytes], stage: Stages) -> list[Mask]: ...


class Published(_Torch):
    """One image after the other; the mask at the network's own size, as there."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self._form = PublishedInference.of(self.predictor.segmenter, self.predictor.backbone)

    def masks(self, files: Sequence[bytes], stage: Stages) -> list[Mask]:
        return [self._mask(each, stage) for each in files]

    def _mask(self, file: bytes, stage: Stages) -> Mask:
        with stage("fit"):
            _, pixels_13SS = self.decoded([file])
            pixels = torch.from_numpy(pixels_13SS).to(self.device)
        with stage("encode"):
            latents_14hw = self._form.encode(pixels)
        with stage("unet"):
            maps = self._form.maps(latents_14hw)
        with stage("postprocess"):
            scores_KSS = self._form.scores(*maps, self.image_size)
        with stage("mask"):
            mask_SS: Mask = scores_KSS.argmax(0).byte().cpu().numpy()
        return mask_SS


class Ours(_Torch):
    """As `Predictor.masks`, stage by stage."""

    def masks(self, files: Sequence[bytes], stage: Stages) -> list[Mask]:
        with stage("fit"):
            sizes, pixels_B3SS = self.decoded(files)
            pixels = torch.from_numpy(pixels_B3SS).to(self.device)
        with stage("encode"):
            latents_B4hw = self.predictor.backbone.encode(pixels)
        with stage("unet"):
            cross_BPhw, was_BPhw = self.predictor.maps(latents_B4hw)
        masks: list[Mask] = []
        for turn, size in enumerate(sizes):
            with stage("postprocess"):
                own = slice(turn, turn + 1)
                scores_Phw = finished(cross_BPhw[own], was_BPhw[own], self.postprocess)
            with stage("mask"):
                masks.append(segment(sharpened(scores_Phw, self.postprocess, pixels[turn]), *size).cpu().numpy())
        return masks


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """PyTorch counts its fused attention on GPUs only."""
    batch, heads, queries, width = query
    return int(2 * batch * heads * queries * key[-2] * (width + value[-1]))


KINDS: dict[str, type[_Torch]] = {"published": Published, "torch": Ours}
