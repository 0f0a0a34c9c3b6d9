"""What Triton's ``config.pbtxt`` says of one model: frozen values that become its text, and readers of such texts.

The text is protobuf's own, of the message ``ModelConfig`` that tritonclient brings along. This module knows nothing of
segmenters; `contract.py` and `shared_contract.py` say which models there are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from slime_repository.errors import RepositoryError
from slime_repository.openvino_network import FP32, PRECISION

# A segmenter has at most 64, and its UNet's name is longer.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_DTYPES = ("STRING", "UINT8", "INT32", "INT64", "FP32")
_HEADER = "# Generated from slime_repository/contract.py; do not edit.\n"
# The latest two versions of a model are loaded: the version that an ensemble is pinned to serves on while the next one
# is published, and the ensemble's own last version answers until the next is ready. An ensemble that served one
# specific version had moments with none.
LOADED = 2
CPU, OPENVINO = "cpu", "openvino"


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
    """What runs an ONNX model: ONNX Runtime's ``cuda``, ``tensorrt`` or ``openvino`` provider, or ``cpu``.

    Triton's own backend reads no options of ``openvino``, and computes in fp32; the stand-in reads the precision.
    """

    name: str
    parameters: Mapping[str, str] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        return self.name not in (CPU, OPENVINO)


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
    """Return the text of the model's ``config.pbtxt``."""
    messages, _ = _protobuf()
    config = messages.ModelConfig(name=model.name, max_batch_size=model.max_batch_size)
    config.version_policy.latest.num_versions = LOADED
    for added, tensors in ((config.input, model.inputs), (config.output, model.outputs)):
        for tensor in tensors:
            each = added.add(name=tensor.name, data_type=_dtype(tensor), dims=tensor.dims)
            if tensor.optional:
                each.optional = True
    for key, value in model.parameters.items():
        config.parameters[key].string_value = value
    if model.backend is None:
        config.platform = "ensemble"
        for step in model.steps:
            config.ensemble_scheduling.step.add(
                model_name=step.model,
                model_version=step.version,
                input_map={name: name for name in step.inputs},
                output_map={name: name for name in step.outputs},
            )
    else:
        config.backend = model.backend
        # Always a count, because Triton starts two processes of a kind without one.
        config.instance_group.add(count=1, kind=_kind(model))
    if model.backend == "tensorrt":
        config.platform, config.default_model_filename = "tensorrt_plan", "model.plan"
    if model.accelerator and model.accelerator.name != CPU:
        accelerators = config.optimization.execution_accelerators
        on_gpu = model.accelerator.on_gpu
        field = accelerators.gpu_execution_accelerator if on_gpu else accelerators.cpu_execution_accelerator
        field.add(name=model.accelerator.name, parameters=model.accelerator.parameters)
    _set_batching(config, model)
    for size in model.warm_up:
        run = config.model_warmup.add(name=f"batch of {size}", batch_size=size)
        for tensor in model.inputs:
            given = run.inputs[tensor.name]
            given.data_type, given.random_data = _dtype(tensor), True
            given.dims.extend(tensor.dims)
    return as_text(config)


def _set_batching(config: Any, model: Model) -> None:
    if not model.max_batch_size:
        return
    config.dynamic_batching.SetInParent()
    if model.delay_us:
        config.dynamic_batching.max_queue_delay_microseconds = model.delay_us


def _kind(model: Model) -> str:
    if model.backend == "python" or (model.accelerator and not model.accelerator.on_gpu):
        return "KIND_CPU"
    # Networks run on the GPU where there is one; those that can run nowhere else say so when they load.
    return "KIND_GPU" if model.accelerator or model.backend == "tensorrt" else "KIND_AUTO"


def _dtype(tensor: Tensor) -> Any:
    return _protobuf()[0].DataType.Value(f"TYPE_{tensor.dtype}")


def as_text(config: Any) -> str:
    """Return the text of a ModelConfig message, as this project writes it."""
    _, text_format = _protobuf()
    return _HEADER + str(text_format.MessageToString(config, as_utf8=True, use_short_repeated_primitives=True))


@lru_cache(maxsize=512)
def parsed(text: str) -> Any:
    """Return the ModelConfig message that a config.pbtxt holds; it is shared, so copy it before changing it.

    Raises RepositoryError, with the parser's reason, for a text that is none.
    """
    messages, text_format = _protobuf()
    try:
        return text_format.Parse(text, messages.ModelConfig())
    except text_format.ParseError as error:
        raise RepositoryError(" ".join(str(error).split())) from error


def pins(text: str) -> dict[str, int]:
    """Return model -> version of what an ensemble's configuration names; nothing for any other text."""
    try:
        steps = parsed(text).ensemble_scheduling.step
    except RepositoryError:
        return {}
    return {step.model_name: int(step.model_version) for step in steps}


def pinned_to(text: str, versions: Mapping[str, int]) -> str:
    """Return the ensemble's configuration with these versions in place of its own."""
    config = _copied(text)
    for step in config.ensemble_scheduling.step:
        step.model_version = versions[step.model_name]
    return as_text(config)


def loading(text: str, versions: int) -> str:
    """Return the configuration with as many of the latest versions loaded."""
    config = _copied(text)
    config.version_policy.latest.num_versions = versions
    return as_text(config)


def with_parameter(text: str, key: str, value: str) -> str:
    """Return the configuration with this value of a parameter."""
    config = _copied(text)
    config.parameters[key].string_value = value
    return as_text(config)


def same(one: str, other: str) -> bool:
    """Return whether two configurations say the same, however they are written."""
    try:
        return bool(one == other or (one and other and parsed(one) == parsed(other)))
    except RepositoryError:
        return False


def parameters(text: str) -> dict[str, str]:
    """Return what a configuration tells clients. Raises RepositoryError where it cannot be read."""
    return {key: value.string_value for key, value in parsed(text).parameters.items()}


def openvino_precision(text: str) -> str | None:
    """Return the precision that OpenVINO is to compute in, None where something else runs a model.

    Raises RepositoryError where it cannot be read.
    """
    accelerators = parsed(text).optimization.execution_accelerators.cpu_execution_accelerator
    return next((each.parameters.get(PRECISION, FP32) for each in accelerators if each.name == OPENVINO), None)


def tensor_names(text: str) -> Iterator[str]:
    """Yield the names of all tensors that a configuration has, of an ensemble's steps as well."""
    config = parsed(text)
    yield from (tensor.name for tensor in (*config.input, *config.output))
    for step in config.ensemble_scheduling.step:
        yield from (*step.input_map.values(), *step.output_map.values())


def _copied(text: str) -> Any:
    config = _protobuf()[0].ModelConfig()
    config.CopyFrom(parsed(text))
    return config


def _protobuf() -> tuple[Any, Any]:
    """Return tritonclient's messages and protobuf's text format; imported late, so that --help needs neither."""
    try:
        from google.protobuf import text_format  # type: ignore[import-untyped]
        from tritonclient.grpc import model_config_pb2
    except ModuleNotFoundError as error:
        raise RepositoryError(
            'model repository: reading one needs tritonclient, which is missing; pip install "slime-serve[client]"'
        ) from error
    return model_config_pb2, text_format
