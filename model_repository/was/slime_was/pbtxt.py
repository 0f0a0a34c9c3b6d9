"""What Triton's ``config.pbtxt`` says of one model, as frozen values, and its text. Knows nothing of segmenters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

# A segmenter has at most 64, and its UNet's name is longer.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_DTYPES = ("STRING", "UINT8", "INT32", "FP32")


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One input or output; ``dtype`` in Triton's words without TYPE_."""

    name: str
    dtype: str
    dims: tuple[int, ...]
    optional: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise ValueError(f"tensor {self.name}: got dtype {self.dtype}, expected one of {', '.join(_DTYPES)}")
        if not self.dims or any(dim == 0 or dim < -1 for dim in self.dims):
            raise ValueError(f"tensor {self.name}: got dims {self.dims}, expected positive sizes or -1")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One model of the ensemble: the exact version, and the tensors, which keep their names throughout."""

    model: str
    version: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """What runs an ONNX model on a GPU: ONNX Runtime's ``cuda`` or ``tensorrt`` provider, with Triton's options."""

    name: str
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Model:
    """What ``config.pbtxt`` says of one model. An ensemble has steps and no backend."""

    name: str
    backend: str | None
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_batch_size: int = 0
    steps: tuple[Step, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)
    accelerator: Accelerator | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"model name: got {self.name!r}, expected letters, digits, _ and - (at most 128)")
        if (self.backend is None) != bool(self.steps):
            raise ValueError(f"model {self.name}: expected either a backend or the steps of an ensemble")
        if self.accelerator and self.backend != "onnxruntime":
            raise ValueError(f"model {self.name}: got an accelerator for {self.backend}, expected onnxruntime")


def model_config(model: Model) -> str:
    """The text of ``config.pbtxt``."""
    lines = ["# Generated from slime_was/contract.py; do not edit.", f"name: {_quoted(model.name)}"]
    lines += [f"backend: {_quoted(model.backend)}"] if model.backend else ['platform: "ensemble"']
    if model.backend == "tensorrt":
        lines += ['platform: "tensorrt_plan"', 'default_model_filename: "model.plan"']
    lines.append(f"max_batch_size: {model.max_batch_size}")
    # The latest two: the version an ensemble is pinned to serves on while the next one is published, and the
    # ensemble's own last version answers until the next is ready. An ensemble that served one specific version had
    # moments with none.
    lines.append("version_policy { latest { num_versions: 2 } }")
    lines += [_tensor("input", tensor) for tensor in model.inputs]
    lines += [_tensor("output", tensor) for tensor in model.outputs]
    if model.max_batch_size:
        lines.append("dynamic_batching {}")
    if model.backend:
        # Triton starts two processes of a kind without a count.
        lines.append(f"instance_group [{{ count: 1{_kind(model)} }}]")
    if model.accelerator:
        lines += _optimization(model.accelerator)
    if model.steps:
        lines += ["ensemble_scheduling {", *map(_step, model.steps), "}"]
    for key, value in model.parameters.items():
        lines.append(f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}")
    return "\n".join(lines) + "\n"


def _kind(model: Model) -> str:
    if model.backend == "python":
        return ", kind: KIND_CPU"
    # Networks run on the GPU where there is one; those that can run nowhere else say so when they load.
    return ", kind: KIND_GPU" if model.accelerator or model.backend == "tensorrt" else ""


def _optimization(accelerator: Accelerator) -> list[str]:
    lines = ["optimization { execution_accelerators { gpu_execution_accelerator [ {"]
    lines.append(f"  name: {_quoted(accelerator.name)}")
    lines += [
        f"  parameters {{ key: {_quoted(key)} value: {_quoted(value)} }}"
        for key, value in accelerator.parameters.items()
    ]
    return [*lines, "} ] } }"]


def _tensor(direction: str, tensor: Tensor) -> str:
    dims = ", ".join(map(str, tensor.dims))
    optional = ", optional: true" if tensor.optional else ""
    return f"{direction} [{{ name: {_quoted(tensor.name)}, data_type: TYPE_{tensor.dtype}, dims: [{dims}]{optional} }}]"


def _step(step: Step) -> str:
    lines = [f"    model_name: {_quoted(step.model)}", f"    model_version: {step.version}"]
    lines += [f"    input_map {{ key: {_quoted(name)} value: {_quoted(name)} }}" for name in step.inputs]
    lines += [f"    output_map {{ key: {_quoted(name)} value: {_quoted(name)} }}" for name in step.outputs]
    return "\n".join(["  step {", *lines, "  }"])


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
