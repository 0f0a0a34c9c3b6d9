"""Runs exported networks: ONNX files in ONNX Runtime or OpenVINO, TensorRT engines on the GPU. Knows no segmenters.

All are called alike, with arrays by name, so that all are compared with PyTorch in the same way. Inputs and outputs
are float32, whatever is inside. What runs them is imported when a model is opened, never before.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from onnx import ModelProto
from torch import Tensor

from slime_export import machine
from slime_export.errors import EngineError, ExportError
from slime_export.graph import engine_builder, onnx_export
from slime_repository.config import OPENVINO
from slime_repository.contract import openvino_computes_in
from slime_repository.openvino_network import BF16, OpenVinoError, OpenVinoNetwork, has_bf16
from slime_repository.variant import Variant

Array = npt.NDArray[Any]
CPU = ("CPUExecutionProvider",)
# The first version that reads the external weights of a model in memory from a given folder; 1.20 fails to.
LEAST_ONNXRUNTIME = (1, 21)
INSTALL = "pip install 'slime-serve[export]'"


class Network(Protocol):
    """An exported network that can be run."""

    outputs: tuple[str, ...]

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Inputs by name -> outputs by name."""


def onnxruntime() -> ModuleType:
    """Return the `onnxruntime` package. Raises ExportError, with the pip line, where it is missing or too old."""
    least = ".".join(map(str, LEAST_ONNXRUNTIME))
    try:
        package = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ExportError(
            f"onnxruntime: cannot be imported ({error}), expected version {least} or later; {INSTALL}"
        ) from error
    if tuple(int(number) for number in package.__version__.split(".")[:2]) < LEAST_ONNXRUNTIME:
        raise ExportError(f"onnxruntime: got version {package.__version__}, expected {least} or later; {INSTALL}")
    return package


def providers_for(precision: str) -> tuple[str, ...]:
    """Return ONNX Runtime's providers that run this precision here. Raises ExportError where there is none.

    The CPU's runs all but bf16: it has no such kernels for convolutions, products and sigmoids.
    """
    if precision != "bf16":
        return CPU
    there = onnxruntime().get_available_providers()
    able = tuple(each for each in there if each in ("TensorrtExecutionProvider", "CUDAExecutionProvider"))
    if not able:
        raise ExportError(
            f"--precision bf16: no provider on this machine runs it (there are {', '.join(there)}), so nothing could "
            "be compared with PyTorch; export where there is a GPU and onnxruntime-gpu, give --precision fp16, or "
            "--accelerator openvino for a CPU"
        )
    return (*able, *CPU)


def require_openvino(precision: str) -> None:
    """Raise ExportError unless OpenVINO is installed, and this processor computes in bf16 where that is wanted."""
    try:
        able = has_bf16()
    except OpenVinoError as error:
        raise ExportError(f"--accelerator {OPENVINO}: {error}") from error
    if precision == BF16 and not able:
        raise ExportError(
            f"--precision bf16: this processor has no instructions for it ({machine.described()}), expected AMX or "
            "AVX-512 BF16, so nothing would be gained; leave it out"
        )


def opened(folder: Path, variant: Variant) -> Network:
    """Open the network that `folder` holds with what serves that variant: an engine, OpenVINO, or ONNX Runtime.

    Raises ExportError where it cannot be opened.
    """
    if (folder / engine_builder.FILE).exists():
        return Engine(folder / engine_builder.FILE)
    if variant.format == OPENVINO:
        try:
            return OpenVinoNetwork(
                folder / onnx_export.FILE, openvino_computes_in(variant), threads=torch.get_num_threads()
            )
        except OpenVinoError as error:
            raise ExportError(str(error)) from error
    return OnnxModel(folder / onnx_export.FILE, providers_for(variant.precision))


class OnnxModel:
    """One ONNX model, by default on the CPU, with as many threads as PyTorch has.

    `model` is a file, or a model in memory whose external weights lie in the folder `weights`.
    """

    def __init__(
        self, model: Path | ModelProto, providers: Sequence[str] = CPU, *, weights: Path | None = None
    ) -> None:
        runtime = onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        if weights is not None:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights))
        source = model.SerializeToString() if isinstance(model, ModelProto) else str(model)
        self._session: Any = runtime.InferenceSession(source, options, providers=list(providers))
        self.outputs = tuple(output.name for output in self._session.get_outputs())

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Inputs by name -> outputs by name."""
        return dict(zip(self.outputs, self._session.run(list(self.outputs), dict(inputs)), strict=True))


class Engine:
    """One model.plan on `device`. Raises ExportError without TensorRT, EngineError for a plan that does not load.

    PyTorch holds the tensors, on the GPU.
    """

    def __init__(self, path: Path, device: str = "cuda") -> None:
        trt: Any = engine_builder.module()
        self._device = torch.device(device)
        # Both are kept: an engine does not outlive its runtime.
        self._log = engine_builder.logger(trt)
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

    @property
    def largest(self) -> int:
        """The largest batch that the engine was built for."""
        _, _, (batch, *_) = self._engine.get_tensor_profile_shape(self.inputs[0], 0)
        return int(batch)

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Inputs by name -> outputs by name. A batch larger than the engine's is run in several."""
        total, largest = len(inputs[self.inputs[0]]), self.largest
        answers = []
        for start in range(0, total, largest):
            chunk = {name: torch.from_numpy(each[start : start + largest]) for name, each in inputs.items()}
            on_device = {name: each.to(self._device) for name, each in chunk.items()}
            answers.append({name: each.cpu().numpy() for name, each in self.run(on_device).items()})
        return {name: np.concatenate([each[name] for each in answers]) for name in self.outputs}

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run float32 tensors that are on the device; queued on PyTorch's current stream, not waited for."""
        # Contiguous copies are held until the work is queued; PyTorch frees in the stream's order.
        held = {name: value.contiguous() for name, value in inputs.items()}
        for name, value in held.items():
            if not self._context.set_input_shape(name, tuple(value.shape)):
                raise EngineError(
                    f"TensorRT: input {name} of shape {tuple(value.shape)} is outside the engine's batches"
                )
        shapes = {name: tuple(self._context.get_tensor_shape(name)) for name in self.outputs}
        answers = {name: torch.empty(shape, dtype=torch.float32, device=self._device) for name, shape in shapes.items()}
        for name, value in (held | answers).items():
            self._context.set_tensor_address(name, value.data_ptr())
        on_gpu = self._device.type == "cuda"
        stream = int(torch.cuda.current_stream(self._device).cuda_stream) if on_gpu else 0
        if not self._context.execute_async_v3(stream):
            reason = self._log.errors[-1] if self._log.errors else "no reason given"
            raise EngineError(f"TensorRT: the engine failed ({reason})")
        return answers
