"""The variants in PyTorch, from bytes to masks: the published form, ours in fp32, and ours in fp16 for a GPU.

Shape suffixes: B images, P parts, S image side, h, w map sides.
"""

from __future__ import annotations

import argparse
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from benchmarks.common.pictures import encoded
from benchmarks.common.sides import MissingError
from benchmarks.pipeline.published import PublishedInference
from benchmarks.pipeline.side import Mask, Stages, Variant
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from slime_export.graph.networks import Encoder, MapsUNet
from slime_optimize.method.attention import attend
from slime_optimize.method.prediction import Predictor, accumulated, load_predictor
from slime_optimize.segmenter import library_versions
from slime_was import Postprocess, finished, segment, sharpened

Maps = tuple[Tensor, Tensor]  # cross and WAS, (B,P,h,w) float32 each
_WARM = 3  # runs before a graph is recorded, for libraries that choose their kernels at first use


class _Synchronised(Stages):
    def wait(self) -> None:
        torch.cuda.synchronize()


class _Torch(Variant):
    too_large = (MemoryError, torch.OutOfMemoryError)

    def __init__(self, options: argparse.Namespace) -> None:
        torch.set_num_threads(options.threads)
        torch.manual_seed(0)
        torch.backends.cudnn.benchmark = True  # for all of them alike; no effect on a CPU
        self.predictor: Predictor = load_predictor(options.segmenter, options.device, options.backbone)
        self.image_size = self.predictor.backbone.image_size
        self.device = self.predictor.backbone.device
        self.postprocess = self.predictor.segmenter.settings.postprocess(self.image_size)
        del self.predictor.backbone.vae.decoder  # the published code does not keep it either

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
        return int(torch.cuda.max_memory_allocated()) if self.device.type == "cuda" else super().peak_bytes()

    @torch.no_grad()
    def masks(self, files: Sequence[bytes], stage: Stages) -> list[Mask]:
        with stage("fit"):
            sizes, pixels_B3SS = self.decoded(files)
            pixels = torch.from_numpy(pixels_B3SS).to(self.device)
        cross_BPhw, was_BPhw = self.maps(pixels, stage)
        masks: list[Mask] = []
        for turn, size in enumerate(sizes):
            with stage("postprocess"):
                own = slice(turn, turn + 1)
                scores_Phw = finished(cross_BPhw[own], was_BPhw[own], self.postprocess)
            with stage("mask"):
                masks.append(segment(sharpened(scores_Phw, self.postprocess, pixels[turn]), *size).cpu().numpy())
        return masks

    @abstractmethod
    def maps(self, pixels_B3SS: Tensor, stage: Stages) -> Maps: ...


class Published(_Torch):
    """One image after the other; the mask at the network's own size, as in the published code."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self._form = PublishedInference.of(self.predictor.segmenter, self.predictor.backbone)

    def maps(self, pixels_B3SS: Tensor, stage: Stages) -> Maps:
        with stage("encode"):
            latents_14hw = self._form.encode(pixels_B3SS)
        with stage("unet"):
            return self._form.maps(latents_14hw)

    def masks(self, files: Sequence[bytes], stage: Stages) -> list[Mask]:
        masks: list[Mask] = []
        for file in files:
            with stage("fit"):
                pixels_13SS = torch.from_numpy(self.decoded([file])[1]).to(self.device)
            maps = self.maps(pixels_13SS, stage)
            with stage("postprocess"):
                scores_KSS = self._form.scores(*maps, self.image_size)
            with stage("mask"):
                masks.append(scores_KSS.argmax(0).byte().cpu().numpy())
        return masks


class Ours(_Torch):
    """As `Predictor.masks`, stage by stage."""

    def maps(self, pixels_B3SS: Tensor, stage: Stages) -> Maps:
        with stage("encode"):
            latents_B4hw = self.predictor.backbone.encode(pixels_B3SS)
        with stage("unet"):
            return self.predictor.maps(latents_B4hw)


class Half(_Torch):
    """Ours in fp16, with the KL or the tiny encoder; with `graphs`, each batch size is one CUDA graph."""

    def __init__(self, options: argparse.Namespace, encoder: str = "vae", graphs: bool = False) -> None:
        super().__init__(options)
        backbone = self.predictor.backbone
        if encoder == "tiny" and backbone.tiny is None:
            raise MissingError("this backbone has no tiny encoder")
        if graphs and self.device.type != "cuda":
            raise MissingError("CUDA graphs need a GPU")
        unet = MapsUNet(self.predictor.segmenter, backbone)
        self._networks = Networks(Encoder(backbone, encoder), unet, self.postprocess).to(self.device).eval().in_half()
        self._with_graphs = graphs
        self._graphs: dict[int, Graphed] = {}

    def maps(self, pixels_B3SS: Tensor, stage: Stages) -> Maps:
        if not self._with_graphs:
            with stage("encode"):
                latents_B4hw = self._networks.latents(pixels_B3SS)
            with stage("unet"):
                return self._networks.maps(latents_B4hw)
        with stage("unet"):  # one launch does both
            batch = len(pixels_B3SS)
            if batch not in self._graphs:
                self._graphs[batch] = Graphed(self._networks, pixels_B3SS)
            return self._graphs[batch](pixels_B3SS)


class Networks(nn.Module):
    """Pixels (B,3,S,S) float32 -> cross and WAS maps, on one device and in one precision.

    WAS is accumulated after the pass, with the maps as values in groups of the head's width: the form that PyTorch's
    fused attention takes. Text and timestep are folded, and all that is constant is on the device, as graphs need it.
    """

    def __init__(self, encoder: Encoder, unet: MapsUNet, postprocess: Postprocess) -> None:
        super().__init__()
        self.encoder, self.unet, self.postprocess = encoder, unet, postprocess
        self.precision, self.layout = torch.float32, torch.contiguous_format

    def in_half(self) -> Networks:
        """Change itself, and weights that it shares, to fp16 with channels last, for tensor cores."""
        self.precision, self.layout = torch.float16, torch.channels_last
        self.to(dtype=self.precision, memory_format=self.layout)  # type: ignore[call-overload]
        maps: Any = self.unet.maps
        for one in maps.passes:
            for name in one.layers.cross:
                # The maps that are read, 77 tokens wide, in fp32, as exported graphs have them. Fused self-attention
                # keeps its softmax in fp32 by itself.
                one.unet.get_submodule(name).upcast_attention = True
        return self

    def latents(self, pixels_B3SS: Tensor) -> Tensor:
        latents_B4hw: Tensor = self.encoder(pixels_B3SS.to(self.precision).contiguous(memory_format=self.layout))
        return latents_B4hw

    def maps(self, latents_B4hw: Tensor) -> Maps:
        cross_BPhw, was_BPhw = accumulated(self.unet.runs(attend, latents_B4hw), self.postprocess)
        return cross_BPhw.float(), was_BPhw.float()

    def forward(self, pixels_B3SS: Tensor) -> Maps:
        return self.maps(self.latents(pixels_B3SS))


class Graphed:
    """Networks replayed as one CUDA graph, for the batch of `pixels_B3SS`: one launch instead of thousands."""

    def __init__(self, networks: Callable[[Tensor], Maps], pixels_B3SS: Tensor) -> None:
        # Recorded with these tensors: later inputs are copied into them, and outputs are read from them.
        self._pixels = pixels_B3SS.clone()
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM):
                networks(self._pixels)
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._maps = networks(self._pixels)

    def __call__(self, pixels_B3SS: Tensor) -> Maps:
        """Return the maps; the next call overwrites them."""
        self._pixels.copy_(pixels_B3SS)
        self._graph.replay()
        return self._maps


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """PyTorch counts its fused attention on GPUs only."""
    batch, heads, queries, width = query
    return int(2 * batch * heads * queries * key[-2] * (width + value[-1]))


MADE: dict[str, Callable[[argparse.Namespace], _Torch]] = {
    "published": Published,
    "torch": Ours,
    "fp16": Half,
    "fp16_graph": partial(Half, graphs=True),
    "fp16_tiny": partial(Half, encoder="tiny"),
    "fp16_tiny_graph": partial(Half, encoder="tiny", graphs=True),
}
