"""The ways to a mask that benchmarks.gpu measures: each takes fitted pixels on the device and gives the masks.

    Networks     PyTorch, weighted, in any precision: what the server's two networks do
    Graphed      the same as one CUDA graph, for one batch size
    Served       the exported files: ONNX Runtime's CUDA provider, or TensorRT engines

Shape suffixes: B batch, P parts, S image side, h, w map sides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slime_export.graph.encoder import Encoder
from slime_export.graph.unet import MapsUNet
from slime_optimize.method.attention import attend
from slime_optimize.method.passes import accumulated
from slime_was import Postprocess, finished, segment
from slime_was.tensors import ACCUMULATED, CROSS, LATENTS, PIXELS

Maps = tuple[Tensor, Tensor]  # cross and WAS, (B,P,h,w) float32 each
Runner = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]

_WARM = 3  # runs before a graph is recorded, for libraries that choose their kernels at first use


class NotRunError(RuntimeError):
    """Cannot be measured here; one line says why."""


class Networks(nn.Module):
    """Pixels (B,3,S,S) float32 -> cross and WAS maps, on one device and in one precision.

    WAS is accumulated after the pass, the maps as values in groups of the head's width: the form that PyTorch's fused
    attention takes. Text and timestep are folded, and all that is constant is on the device, as CUDA graphs need it.
    """

    def __init__(self, encoder: Encoder, unet: MapsUNet, postprocess: Postprocess) -> None:
        super().__init__()
        self.encoder, self.unet, self.postprocess = encoder, unet, postprocess
        self.precision, self.layout = torch.float32, torch.contiguous_format

    def in_half(self) -> Networks:
        """Itself, in fp16 with channels last, for tensor cores. Shared weights change with it."""
        self.precision, self.layout = torch.float16, torch.channels_last
        self.to(dtype=self.precision, memory_format=self.layout)  # type: ignore[call-overload]
        for one in self.unet.maps.passes:
            for name in one.layers.cross:
                # The maps that are read, 77 tokens wide, in fp32, as exported graphs have them. Fused self-attention
                # keeps its softmax in fp32 by itself.
                one.unet.get_submodule(name).upcast_attention = True
        return self

    def forward(self, pixels_B3SS: Tensor) -> Maps:
        latents_B4hw = self.encoder(pixels_B3SS.to(self.precision).contiguous(memory_format=self.layout))
        cross_BPhw, was_BPhw = accumulated(self.unet.runs(attend, latents_B4hw), self.postprocess)
        return cross_BPhw.float(), was_BPhw.float()


class Graphed:
    """Networks replayed as one CUDA graph, for the batch of `pixels_B3SS`: one launch, not thousands."""

    def __init__(self, networks: Callable[[Tensor], Maps], pixels_B3SS: Tensor) -> None:
        # Recorded with these tensors, which later inputs are copied into and outputs read from.
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
        """What it gives is overwritten by the next call."""
        self._pixels.copy_(pixels_B3SS)
        self._graph.replay()
        return self._maps


class Served:
    """Pixels through two exported networks, weighted ones, by name of tensor, as Triton passes them on."""

    def __init__(self, encoder: Runner, unet: Runner) -> None:
        self._encoder, self._unet = encoder, unet

    def __call__(self, pixels_B3SS: Tensor) -> Maps:
        latents_B4hw = self._encoder({PIXELS: pixels_B3SS})[LATENTS]
        maps = self._unet({LATENTS: latents_B4hw})
        return maps[CROSS], maps[ACCUMULATED]


class OnnxOnDevice:
    """An ONNX file in ONNX Runtime on the tensors' device; outputs, which are small, come by way of the CPU."""

    def __init__(self, path: Path, device: torch.device) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        wanted = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
        if wanted not in onnxruntime.get_available_providers():
            raise NotRunError("onnxruntime here has no CUDA provider; pip install onnxruntime-gpu in its place")
        self._session: Any = onnxruntime.InferenceSession(str(path), options, providers=[wanted])
        if wanted not in self._session.get_providers():  # it falls back by itself where CUDA's libraries do not load
            raise NotRunError("onnxruntime could not start its CUDA provider; see its own words above")
        self._device = device

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        binding = self._session.io_binding()
        for name, value in inputs.items():
            place = (value.device.type, value.device.index or 0)
            binding.bind_input(name, *place, np.float32, tuple(value.shape), value.contiguous().data_ptr())
        names = [each.name for each in self._session.get_outputs()]
        for name in names:
            binding.bind_output(name, self._device.type, self._device.index or 0)
        if self._device.type == "cuda":
            torch.cuda.current_stream().synchronize()  # it works on a stream of its own
        self._session.run_with_iobinding(binding)
        values = zip(names, binding.copy_outputs_to_cpu(), strict=True)
        return {name: torch.from_numpy(value).to(self._device) for name, value in values}


def masks(maps: Maps, postprocess: Postprocess, side: int) -> Tensor:
    """Maps of a batch to masks (B, side, side) uint8 on their device, an image at a time, as the server does."""
    each = zip(*(one.split(1) for one in maps), strict=True)
    return torch.stack([segment(finished(cross, was, postprocess), side, side) for cross, was in each])
