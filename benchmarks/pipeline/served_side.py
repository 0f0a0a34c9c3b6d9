"""The exported networks in one process, or behind the server, and the machine's fastest matrix product.

ONNX files run in ONNX Runtime or OpenVINO, engines in TensorRT. Importing this module imports no PyTorch.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from benchmarks.common.sides import MissingError
from benchmarks.pipeline.side import Mask, Stages, Variant
from onnx import TensorProto, helper

import slime_was
from slime_repository.openvino_network import BF16, OpenVinoError, OpenVinoNetwork, has_bf16
from slime_was.tensors import ACCUMULATED, CROSS, LATENTS, PIXELS, POSTPROCESS, SELF

_PUBLISHED_AS = "measured"
PRODUCT_SIDE = 3072  # of the two matrices that are multiplied
Arrays = Mapping[str, Any]


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
    """bytes -> slime_image -> encoder -> UNet -> slime_was -> masks."""

    def __init__(self, options: argparse.Namespace) -> None:
        runtime = "openvino" if options.openvino else "onnxruntime"
        self._threads, self._versions = options.threads, {runtime: version(runtime)}
        self.image_size = options.pixels
        self._encoder, device = network(Path(options.encoder), options)
        self._unet, self._device = network(Path(options.unet), options)
        if options.device != "cpu" and "cpu" in (device, self._device):
            raise MissingError("onnxruntime could not start its CUDA provider; its own words are above")

    @property
    def about(self) -> dict[str, Any]:
        return {"device": self._device, "threads": self._threads, "versions": self._versions}

    def peak_bytes(self) -> int:
        return super().peak_bytes() if self._device == "cpu" else 0  # what these libraries take of a GPU is not seen

    def masks(self, files: Sequence[bytes], stage: Stages) -> list[Mask]:
        with stage("fit"):
            sizes, pixels_B3SS = self.decoded(files)
        with stage("encode"):
            latents_B4hw = self._encoder({PIXELS: pixels_B3SS})[LATENTS]
        with stage("unet"):
            maps = self._unet({LATENTS: latents_B4hw})
        masks: list[Mask] = []
        for turn, size in enumerate(sizes):
            own = slice(turn, turn + 1)
            with stage("postprocess"):
                postprocess = slime_was.Postprocess.from_vector(maps[POSTPROCESS][turn])
                if ACCUMULATED in maps:
                    scores_Khw = slime_was.finished(maps[CROSS][own], maps[ACCUMULATED][own], postprocess)
                else:
                    scores_Khw = slime_was.scores(maps[CROSS][own], maps[SELF][own], postprocess)
            with stage("mask"):
                sharp = slime_was.sharpened(scores_Khw, postprocess, pixels_B3SS[turn])
                masks.append(np.asarray(slime_was.segment(sharp, *size)))
        return masks


def network(path: Path, options: argparse.Namespace) -> tuple[Callable[[Arrays], Arrays], str]:
    """Open a network; return what runs it, by names of tensors, and the device it runs on."""
    if path.suffix == ".plan":
        from slime_export.graph.runtimes import Engine

        return Engine(path, options.device), "cuda"
    if options.openvino:
        try:
            if options.openvino == BF16 and not has_bf16():
                raise MissingError("this processor has no instructions for bf16")
            return OpenVinoNetwork(path, options.openvino, threads=options.threads), "cpu"
        except OpenVinoError as error:
            raise MissingError(str(error)) from error
    session = opened(path, options)
    names = [output.name for output in session.get_outputs()]
    device = session.get_providers()[0].removesuffix("ExecutionProvider").lower()

    def run(inputs: Arrays) -> Arrays:
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    return run, device


def opened(path: Path, options: argparse.Namespace) -> Any:
    """Return a session as serve/backends/onnxruntime opens it, except for the changes of `options.session`."""
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
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise MissingError("onnxruntime here has no CUDA provider; pip install onnxruntime-gpu in its place")
        providers = ["CUDAExecutionProvider", *providers]
    return onnxruntime.InferenceSession(str(path), wanted, providers=providers)


class Triton(Variant):
    """The same ONNX files behind serve/launch.py, from bytes to masks over gRPC on loopback.

    The stage `unet` holds all of the time; peak memory is the client's alone.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        # Imported here, so that the memory of the other variants does not hold them; publishing needs PyTorch.
        from benchmarks.common.served_repository import Networks
        from benchmarks.common.server import launched
        from benchmarks.publishing.variants import UNCHECKED, Published

        from slime_client import Segmenter as Client
        from slime_optimize.segmenter import Segmenter
        from slime_repository.variant import Variant as Exported

        self._threads, self.image_size = options.threads, options.pixels
        self._stack = ExitStack()
        repository = Path(self._stack.enter_context(tempfile.TemporaryDirectory(dir=options.unet.parents[1])))
        variant = Exported(
            maps="weighted" if options.unet.parent.name.startswith("weighted") else "averaged",
            precision=options.openvino or "fp32",
            format="openvino" if options.openvino else "onnx",
        )
        segmenter, networks = Segmenter.load(options.segmenter), Networks(options.encoder, options.unet)
        published = Published(segmenter=segmenter, check=UNCHECKED, networks=networks, variant=variant)
        published.publish(repository, _PUBLISHED_AS, None)
        words = ("--no-verify", "--threads", str(options.threads))
        server = self._stack.enter_context(launched(repository, *words))
        self._client = self._stack.enter_context(Client(server.url, _PUBLISHED_AS))

    @property
    def about(self) -> dict[str, Any]:
        return {"device": "cpu", "threads": self._threads, "versions": {}}

    def masks(self, files: Sequence[bytes], stage: Stages) -> list[Mask]:
        with stage("unet"):
            return [self._client.segment(each, timeout=600).array for each in files]

    def close(self) -> None:
        self._stack.close()


class Product(Variant):
    """What the machine can do: a large fp32 matrix product, in PyTorch and in ONNX Runtime.

    Its "images" are products; the stage `unet` holds the seconds of the faster library's.
    """

    image_size = PRODUCT_SIDE

    def __init__(self, options: argparse.Namespace) -> None:
        import torch

        torch.set_num_threads(options.threads)
        left, right = np.random.default_rng(0).standard_normal((2, PRODUCT_SIDE, PRODUCT_SIDE)).astype(np.float32)
        tensors = torch.from_numpy(left).to(options.device), torch.from_numpy(right).to(options.device)
        self._device, self._threads = options.device, options.threads
        self._wait: Callable[[], Any] = torch.cuda.synchronize if options.device != "cpu" else int
        self._products: list[Callable[[], Any]] = [lambda: torch.mm(*tensors)]
        if options.device == "cpu":
            session = _product_session(right, options.threads)
            self._products.append(lambda: session.run(None, {"left": left}))

    @property
    def about(self) -> dict[str, Any]:
        return {"device": self._device, "threads": self._threads, "versions": {}}

    def masks(self, files: Sequence[bytes], stage: Stages) -> list[Mask]:
        stage.seconds["unet"] = min(self._timed(each) for each in self._products)
        return []

    def _timed(self, product: Callable[[], Any]) -> float:
        begin = time.perf_counter()
        product()
        self._wait()
        return time.perf_counter() - begin


def _product_session(right: Any, threads: int) -> Any:
    """Return a session of a product with a constant, as most products of a network are."""
    node = helper.make_node("MatMul", ["left", "right"], ["product"])
    shape = [PRODUCT_SIDE, PRODUCT_SIDE]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("left", "product")]
    constant = helper.make_tensor("right", TensorProto.FLOAT, right.shape, right.tobytes(), raw=True)
    graph = helper.make_graph([node], "product", ends[:1], ends[1:], [constant])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


MADE: dict[str, Callable[[argparse.Namespace], Variant]] = {"served": Served, "triton": Triton, "product": Product}
