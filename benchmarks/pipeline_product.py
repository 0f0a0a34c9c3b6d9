"""What this machine can do: a large fp32 matrix product, in PyTorch and in ONNX Runtime, the faster of which counts."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime
import torch
from benchmarks.pipeline_side import Mask, Stages, Variant
from onnx import TensorProto, helper

SIDE = 3072
MACS = SIDE**3


class Product(Variant):
    """Its "images" are products; the stage `unet` holds the seconds of the faster library's."""

    image_size = SIDE

    def __init__(self, options: argparse.Namespace) -> None:
        torch.set_num_threads(options.threads)
        left, right = np.random.default_rng(0).standard_normal((2, SIDE, SIDE)).astype(np.float32)
        tensors = torch.from_numpy(left).to(options.device), torch.from_numpy(right).to(options.device)
        self._on_gpu = options.device != "cpu"
        self._threads = options.threads
        self._products: list[Callable[[], Any]] = [lambda: torch.mm(*tensors)]
        if not self._on_gpu:
            session = _session(right, options.threads)
            self._products.append(lambda: session.run(None, {"left": left}))

    @property
    def about(self) -> dict[str, Any]:
        return {"device": "cuda" if self._on_gpu else "cpu", "threads": self._threads, "versions": {}}

    def masks(self, files: Sequence[bytes], stage: Stages) -> list[Mask]:
        stage.seconds["unet"] = min(self._timed(each) for each in self._products)
        return []

    def _timed(self, product: Callable[[], Any]) -> float:
        begin = time.perf_counter()
        product()
        if self._on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - begin


def _session(right: Any, threads: int) -> Any:
    """A product with a constant, as most of a network's are."""
    node = helper.make_node("MatMul", ["left", "right"], ["product"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [SIDE, SIDE]) for name in ("left", "product")]
    constant = helper.make_tensor("right", TensorProto.FLOAT, right.shape, right.tobytes(), raw=True)
    graph = helper.make_graph([node], "product", ends[:1], ends[1:], [constant])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
