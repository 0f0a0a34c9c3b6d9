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


CPU = "cpu"


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """What runs an ONNX model: ONNX Runtime's ``cuda`` or ``tensorrt`` provider, with Triton's options, or ``cpu``."""

    name: str
    parameters: Mapping[str, str] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        return self.name != CPU


@dataclass(frozen=True, kw_only=True)
class Queue:
    """Requests that may wait for a model, and for how long; those beyond are refused at once, as UNAVAILABLE."""

    size: int
    seconds: float


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
    queue: Queue | None = None
    delay_us: int = 0  # microseconds that a request waits for others to run with
    warm_up: tuple[int, ...] = ()  # batch sizes that are run before the model counts as loaded

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"model name: got {self.name!r}, expected letters, digits, _ and - (at most 128)")
        if (self.backend is None) != bool(self.steps):
            raise ValueError(f"model {self.name}: expected either a backend or the steps of an ensemble")
        if self.accelerator and self.backend != "onnxruntime":
            raise ValueError(f"model {self.name}: got an accelerator for {self.backend}, expected onnxruntime")


def model_config(model: Model) -> str:
    """The text of ``config.pbtxt``."""
    lines = ["# Generated from slime_repository/contract.py; do not edit.", f"name: {_quoted(model.name)}"]
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
    # Also of models that do not batch: only here Triton takes a limit.
    if model.max_batch_size or model.queue:
        lines += _batching(model)
    if model.backend:
        # Triton starts two processes of a kind without a count.
        lines.append(f"instance_group [{{ count: 1{_kind(model)} }}]")
    if model.accelerator and model.accelerator.on_gpu:
        lines += _optimization(model.accelerator)
    lines += [_warm_up(model, size) for size in model.warm_up]
    if model.steps:
        lines += ["ensemble_scheduling {", *map(_step, model.steps), "}"]
    for key, value in model.parameters.items():
        lines.append(f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}")
    return "\n".join(lines) + "\n"


def _batching(model: Model) -> list[str]:
    lines = [f"  max_queue_delay_microseconds: {model.delay_us}"] if model.delay_us else []
    if model.queue:
        lines += [
            "  default_queue_policy {",
            f"    timeout_action: REJECT default_timeout_microseconds: {round(model.queue.seconds * 1e6)}",
            f"    allow_timeout_override: true max_queue_size: {model.queue.size}",
            "  }",
        ]
    return ["dynamic_batching {", *lines, "}"] if lines else ["dynamic_batching {}"]


def _warm_up(model: Model, size: int) -> str:
    inputs = " ".join(
        f"inputs {{ key: {_quoted(tensor.name)} value: {{ data_type: TYPE_{tensor.dtype} "
        f"dims: [{', '.join(map(str, tensor.dims))}] random_data: true }} }}"
        for tensor in model.inputs
    )
    return f'model_warmup [{{ name: "batch of {size}" batch_size: {size} {inputs} }}]'


def _kind(model: Model) -> str:
    if model.backend == "python" or (model.accelerator and not model.accelerator.on_gpu):
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
