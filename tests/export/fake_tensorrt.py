"""Stands in for the `tensorrt` package: the same names and arguments, checked at each call, and no GPU.

Signatures are those of NVIDIA's Python bindings 10.7.0 and 11.4.0, which agree in all that is used. The fake parser
reads the ONNX file for real; a plan is JSON that tells how it was built; an engine runs the ONNX file on the CPU.
"""

import ctypes
import enum
import functools
import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime

Buffer = (bytes, bytearray, memoryview)


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Refuses arguments of other names or types than the annotations', as the bindings do (TypeError)."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            wanted = signature.parameters[name].annotation
            if wanted is not inspect.Parameter.empty and not isinstance(value, wanted):
                raise TypeError(f"{function.__qualname__}(): incompatible argument {name}: {value!r}")
        return function(*args, **kwargs)

    return call


class Severity(enum.IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class NetworkDefinitionCreationFlag(enum.IntEnum):
    EXPLICIT_BATCH, STRONGLY_TYPED = range(2)


class BuilderFlag(enum.Enum):
    TF32, VERSION_COMPATIBLE, REFIT = range(3)


class HardwareCompatibilityLevel(enum.Enum):
    NONE, AMPERE_PLUS, SAME_COMPUTE_CAPABILITY = range(3)


class OldHardwareCompatibilityLevel(enum.Enum):
    """10.7's."""

    NONE, AMPERE_PLUS = range(2)


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = range(3)


class ILogger:
    Severity = Severity

    def __init__(self) -> None:
        self.started = True

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError


class IProgressMonitor:
    def __init__(self) -> None:
        self.started = True


class IHostMemory(bytes):
    @property
    def nbytes(self) -> int:
        return len(self)


class ITensor:
    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name, self.shape = name, shape


class INetworkDefinition:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.path = ""
        self.inputs: list[ITensor] = []

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @checked
    def get_input(self, index: int) -> ITensor:
        return self.inputs[index]


class ITimingCache:
    """Of the GPU and version named `this`."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    @checked
    def combine(self, input_cache: Any, ignore_mismatch: bool) -> bool:
        return True

    @checked
    def serialize(self) -> IHostMemory:
        return IHostMemory(self.content)


class IOptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[list[int]]] = {}

    @checked
    def set_shape(self, input: str, min: Sequence, opt: Sequence, max: Sequence) -> None:  # type: ignore[type-arg]
        self.shapes[input] = [list(min), list(opt), list(max)]


class IBuilderConfig:
    def __init__(self) -> None:
        self.set = {BuilderFlag.TF32}
        self.profiles: list[IOptimizationProfile] = []
        self.cache: ITimingCache | None = None
        self.hardware_compatibility_level: Any = HardwareCompatibilityLevel.NONE
        self.progress_monitor: IProgressMonitor | None = None

    @checked
    def set_flag(self, flag: BuilderFlag) -> None:
        self.set.add(flag)

    @checked
    def clear_flag(self, flag: BuilderFlag) -> None:
        self.set.discard(flag)

    @checked
    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    @checked
    def create_timing_cache(self, serialized_timing_cache: Buffer) -> ITimingCache:  # type: ignore[valid-type]
        return ITimingCache(bytes(serialized_timing_cache))

    @checked
    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache.content and not cache.content.startswith(b"this"):
            return False
        self.cache = cache
        return True


class Builder:
    @checked
    def __init__(self, logger: ILogger) -> None:
        assert logger.started, "the base class was not started"
        self.logger = logger

    @checked
    def create_network(self, flags: int = 0) -> INetworkDefinition:
        return INetworkDefinition(flags)

    @checked
    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    @checked
    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    @checked
    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        assert config.cache is not None
        monitor: Any = config.progress_monitor
        monitor.phase_start("Building Engine", None, 2)
        monitor.phase_start("Tactics", "Building Engine", 1)
        assert monitor.step_complete("Tactics", 0) is True
        monitor.phase_finish("Building Engine")
        if "fails" in Path(network.path).name:
            self.logger.log(Severity.WARNING, "only a warning")
            self.logger.log(Severity.ERROR, "Could not find any\n  implementation")
            return None
        told = {
            "onnx": network.path,
            "strongly_typed": bool(network.flags & 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED)),
            "flags": sorted(flag.name for flag in config.set),
            "profiles": [profile.shapes for profile in config.profiles],
            "hardware": config.hardware_compatibility_level.name,
            "knew": len(config.cache.content),
        }
        config.cache.content += b"" if config.cache.content else b"this GPU: a kernel took 1 ms"
        return IHostMemory(json.dumps(told).encode())


class ParserError:
    def __init__(self, operator: str, name: str, description: str) -> None:
        self._said = operator, name, description

    def node_operator(self) -> str:
        return self._said[0]

    def node_name(self) -> str:
        return self._said[1]

    def desc(self) -> str:
        return self._said[2]


class OnnxParser:
    @checked
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self.network, self.logger = network, logger
        self.errors: list[ParserError] = []

    @property
    def num_errors(self) -> int:
        return len(self.errors)

    @checked
    def get_error(self, index: int) -> ParserError:
        return self.errors[index]

    @checked
    def parse_from_file(self, model: str) -> bool:
        try:
            graph = onnx.load(model).graph  # with weights in files of their own
        except Exception as error:  # theirs raise of many kinds
            self.logger.log(Severity.ERROR, str(error))
            return False
        bad = [node for node in graph.node if node.op_type == "Unheard"]
        self.errors = [ParserError(node.op_type, node.name, "No importer\n registered for op") for node in bad]
        self.network.path = model
        self.network.inputs = [ITensor(each.name, _shape(each)) for each in graph.input]
        return not bad


def _one_thread() -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return options


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim)


class IExecutionContext:
    """Runs the ONNX file; memory is read and written by address, as a GPU's would be."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.session = onnxruntime.InferenceSession(told["onnx"], _one_thread(), providers=["CPUExecutionProvider"])
        self.profile = told["profiles"][0]
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.outputs: dict[str, Any] = {}

    @checked
    def set_input_shape(self, name: str, shape: tuple) -> bool:  # type: ignore[type-arg]
        low, _, high = self.profile[name]
        within = all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))
        if within:
            self.shapes[name] = shape
            self.outputs = self._run({name: np.zeros(shape, np.float32) for name, shape in self.shapes.items()})
        return within

    @checked
    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.outputs[name].shape)

    @checked
    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return True

    @checked
    def execute_async_v3(self, stream_handle: int) -> bool:
        feeds = {name: self._at(name, shape).copy() for name, shape in self.shapes.items()}
        for name, value in self._run(feeds).items():
            self._at(name, value.shape)[...] = value
        return True

    def _run(self, feeds: dict[str, Any]) -> dict[str, Any]:
        names = [each.name for each in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, feeds), strict=True))

    def _at(self, name: str, shape: tuple[int, ...]) -> Any:
        kind = ctypes.c_float * int(np.prod(shape))
        return np.ctypeslib.as_array(kind.from_address(self.addresses[name])).reshape(shape)


class ICudaEngine:
    def __init__(self, told: dict[str, Any]) -> None:
        self.told = told
        graph = onnx.load(told["onnx"], load_external_data=False).graph
        self.tensors = {each.name: TensorIOMode.INPUT for each in graph.input}
        self.tensors |= {each.name: TensorIOMode.OUTPUT for each in graph.output}

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    @checked
    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    @checked
    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return self.tensors[name]

    @checked
    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[list[int]]:
        shapes: list[list[int]] = self.told["profiles"][profile_index][name]
        return shapes

    @checked
    def create_execution_context(self) -> IExecutionContext:
        return IExecutionContext(self.told)


class Runtime:
    @checked
    def __init__(self, logger: ILogger) -> None:
        self.logger = logger
        self.engine_host_code_allowed = False

    @checked
    def deserialize_cuda_engine(self, serialized_engine: Buffer) -> ICudaEngine | None:  # type: ignore[valid-type]
        try:
            told = json.loads(bytes(serialized_engine))
        except ValueError:
            self.logger.log(Severity.ERROR, "Serialization assertion failed")
            return None
        return ICudaEngine(told)


NAMES = (Builder, BuilderFlag, HardwareCompatibilityLevel, ILogger, IProgressMonitor)
NAMES += (NetworkDefinitionCreationFlag, OnnxParser, Runtime, TensorIOMode)
# What signatures are compared in, where the real package is.
METHODS = (Builder, IBuilderConfig, IOptimizationProfile, ITimingCache, INetworkDefinition, OnnxParser)
METHODS += (Runtime, ICudaEngine, IExecutionContext)


def module(version: str = "11.4.0") -> ModuleType:
    """To be put into `sys.modules`."""
    fake = ModuleType("tensorrt")
    for each in NAMES:
        setattr(fake, each.__name__, each)
    fake.__version__ = version  # type: ignore[attr-defined]
    return fake
