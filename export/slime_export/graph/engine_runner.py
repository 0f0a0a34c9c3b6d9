"""Runs a TensorRT engine, as `parity.OnnxModel` runs an ONNX file, so that both are compared in the same way.

PyTorch holds the tensors, on the GPU; inputs and outputs are float32, whatever is inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from slime_export.errors import EngineError
from slime_export.graph import engine_builder as tensorrt

Array = npt.NDArray[np.float32]


class Engine:
    """One model.plan on `device`. Raises ExportError without TensorRT, EngineError for a plan that does not load."""

    def __init__(self, path: Path, device: str = "cuda") -> None:
        trt: Any = tensorrt.module()
        self._device = torch.device(device)
        # Both are kept: an engine does not outlive its runtime.
        self._log = tensorrt.logger(trt)
        self._runtime = trt.Runtime(self._log)
        # A plan for several versions carries code of its own; this one was built here.
        self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            reason = self._log.errors[-1] if self._log.errors else "no reason given"
            raise EngineError(f"TensorRT: {path.name} does not load ({reason}); build it again on this GPU and version")
        self._context = self._engine.create_execution_context()
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        self.inputs = tuple(name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT)
        self.outputs = tuple(name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT)

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Inputs by name -> outputs by name. A batch larger than the engine's is run in several."""
        total, largest = len(inputs[self.inputs[0]]), self.largest
        chunks = [slice(start, start + largest) for start in range(0, total, largest)]
        answers = [self._answer({name: value[chunk] for name, value in inputs.items()}) for chunk in chunks]
        return {name: np.concatenate([each[name] for each in answers]) for name in self.outputs}

    @property
    def largest(self) -> int:
        """The largest batch the engine was built for."""
        _, _, most = self._engine.get_tensor_profile_shape(self.inputs[0], 0)
        batch, *_ = most
        return int(batch)

    def _answer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        answers = self.run({name: torch.from_numpy(value).to(self._device) for name, value in inputs.items()})
        return {name: value.cpu().numpy() for name, value in answers.items()}

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As a call, for float32 tensors that are on the device; queued on PyTorch's current stream, not waited for."""
        # Contiguous copies are held until the work is queued; PyTorch frees in the stream's order.
        held = {name: value.contiguous() for name, value in inputs.items()}
        for name, value in held.items():
            if not self._context.set_input_shape(name, tuple(value.shape)):
                raise EngineError(
                    f"TensorRT: input {name} of shape {tuple(value.shape)} is outside the engine's batches"
                )
        answers = {name: self._empty(name) for name in self.outputs}
        for name, value in (held | answers).items():
            self._context.set_tensor_address(name, value.data_ptr())
        if not self._context.execute_async_v3(self._stream()):
            reason = self._log.errors[-1] if self._log.errors else "no reason given"
            raise EngineError(f"TensorRT: the engine failed ({reason})")
        return answers

    def _empty(self, name: str) -> Tensor:
        return torch.empty(tuple(self._context.get_tensor_shape(name)), dtype=torch.float32, device=self._device)

    def _stream(self) -> int:
        return int(torch.cuda.current_stream(self._device).cuda_stream) if self._device.type == "cuda" else 0
