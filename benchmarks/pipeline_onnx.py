"""The served models in ONNX Runtime, in one process, without the server around them. Imports no PyTorch."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from benchmarks.pipeline_side import Mask, Stages, Variant

import slime_was
from slime_was.tensors import ACCUMULATED, CROSS, LATENTS, PIXELS, POSTPROCESS, SELF


def _config(name: str, value: str) -> Callable[[Any], None]:
    return lambda options: options.add_session_config_entry(name, value)


def _set(name: str, value: Any) -> Callable[[Any], None]:
    return lambda options: setattr(options, name, value)


# What is tried beside the options that serve/backends sets; all of them compute the same.
SESSIONS: dict[str, tuple[Callable[[Any], None], ...]] = {
    "served": (),
    "spinning": (_config("session.intra_op.allow_spinning", "1"),),
    "no arena": (_set("enable_cpu_mem_arena", False),),
    "memory patterns": (_set("enable_mem_pattern", True),),
    "no prepacking": (_config("session.disable_prepacking", "1"),),
    "weights outside the arena": (_config("session.use_device_allocator_for_initializers", "1"),),
    "denormals as zero": (_config("session.set_denormal_as_zero", "1"),),
}


class Served(Variant):
    """bytes -> slime_image -> encoder -> UNet -> slime_was -> mask."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._threads = options.threads
        self._encoder = opened(options.encoder, options)
        self._unet = opened(options.unet, options)
        self.image_size = int(self._encoder.get_inputs()[0].shape[-1])
        self._outputs = [output.name for output in self._unet.get_outputs()]

    @property
    def about(self) -> dict[str, Any]:
        device = self._unet.get_providers()[0].removesuffix("ExecutionProvider").lower()
        return {"device": device, "threads": self._threads, "versions": {"onnxruntime": version("onnxruntime")}}

    def masks(self, files: Sequence[bytes], stage: Stages) -> list[Mask]:
        with stage("fit"):
            sizes, pixels_B3SS = self.decoded(files)
        with stage("encode"):
            (latents_B4hw,) = self._encoder.run([LATENTS], {PIXELS: pixels_B3SS})
        with stage("unet"):
            outputs = self._unet.run(self._outputs, {LATENTS: latents_B4hw})
        maps = dict(zip(self._outputs, outputs, strict=True))
        return [self._mask(maps, pixels_B3SS, turn, size, stage) for turn, size in enumerate(sizes)]

    def _mask(self, maps: dict[str, Any], pixels_B3SS: Any, turn: int, size: tuple[int, int], stage: Stages) -> Mask:
        own = slice(turn, turn + 1)
        with stage("postprocess"):
            postprocess = slime_was.Postprocess.from_vector(maps[POSTPROCESS][turn])
            if ACCUMULATED in maps:
                scores_Khw = slime_was.finished(maps[CROSS][own], maps[ACCUMULATED][own], postprocess)
            else:
                scores_Khw = slime_was.scores(maps[CROSS][own], maps[SELF][own], postprocess)
        with stage("mask"):
            sharp = slime_was.sharpened(scores_Khw, postprocess, pixels_B3SS[turn])
            mask_HW: Mask = np.asarray(slime_was.segment(sharp, *size))
        return mask_HW


def opened(path: Path, options: argparse.Namespace) -> Any:
    """A session as serve/backends/onnxruntime opens it, but for the changes of `options.session`."""
    wanted = onnxruntime.SessionOptions()
    wanted.intra_op_num_threads = options.threads
    wanted.inter_op_num_threads = 1
    wanted.log_severity_level = 3
    wanted.add_session_config_entry("session.intra_op.allow_spinning", "0")
    wanted.enable_mem_pattern = False
    for change in SESSIONS[options.session]:
        change(wanted)
    providers = ["CPUExecutionProvider"]
    if options.device != "cpu":
        providers = ["CUDAExecutionProvider", *providers]
    return onnxruntime.InferenceSession(str(path), wanted, providers=providers)
