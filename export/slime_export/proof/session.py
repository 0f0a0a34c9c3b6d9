"""Runs one ONNX file in ONNX Runtime. Knows nothing of segmenters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from slime_export.errors import ExportError

Array = npt.NDArray[np.float32]
CPU = ("CPUExecutionProvider",)


class OnnxModel:
    """One ONNX file, by default on the CPU, with as many threads as PyTorch has."""

    def __init__(self, path: Path, providers: Sequence[str] = CPU) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self._session: Any = onnxruntime.InferenceSession(str(path), options, providers=list(providers))
        self.outputs = tuple(output.name for output in self._session.get_outputs())

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Inputs by name -> outputs by name."""
        return dict(zip(self.outputs, self._session.run(list(self.outputs), dict(inputs)), strict=True))


def providers_for(precision: str) -> tuple[str, ...]:
    """ONNX Runtime's providers that run this precision here. Raises ExportError where there is none.

    The CPU's runs all but bf16: of convolutions, products and sigmoids it has no such kernels.
    """
    if precision != "bf16":
        return CPU
    import onnxruntime

    there = onnxruntime.get_available_providers()
    able = tuple(each for each in there if each in ("TensorrtExecutionProvider", "CUDAExecutionProvider"))
    if not able:
        raise ExportError(
            f"--precision bf16: no provider on this machine runs it (there are {', '.join(there)}), so nothing could "
            "be compared with PyTorch; export where there is a GPU and onnxruntime-gpu, or give --precision fp16"
        )
    return (*able, *CPU)
