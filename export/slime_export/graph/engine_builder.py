"""Builds TensorRT engines: model.onnx to model.plan, on the machine, and for the GPU, that will serve it.

Networks are strongly typed: precision is what the ONNX file says, the only way that TensorRT 11 knows. The batch
is dynamic, everything else is not. TensorRT is imported when an engine is built, never before; its errors, which it
logs and does not raise, become one line.

Knows nothing of segmenters or repositories.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from slime_export.errors import EngineError, ExportError
from slime_optimize.files import whole
from slime_repository.contract import MAX_BATCH

FILE = "model.plan"
INSTALL = "pip install 'slime-serve[gpu]'"
# Which GPUs a plan runs on, and TensorRT's name for it.
HARDWARE = {"this": "NONE", "same": "SAME_COMPUTE_CAPABILITY", "ampere": "AMPERE_PLUS"}

Say = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How an engine is built; two that differ in nothing but `timing_cache` give the same engine."""

    opt_batch: int = 1  # kernels are chosen for this one, and must work from 1 to the largest
    version_compatible: bool = False  # the plan also loads in later TensorRT of this major version; slower
    hardware: str = "this"  # or "same" compute capability, or "ampere" and all later GPUs; slower
    timing_cache: Path | None = None  # kernels' times, read and written: a second build takes seconds, not minutes

    def __post_init__(self) -> None:
        if not 1 <= self.opt_batch <= MAX_BATCH:
            raise ExportError(f"TensorRT: got opt batch {self.opt_batch}, expected 1 to {MAX_BATCH}")
        if self.hardware not in HARDWARE:
            raise ExportError(f"TensorRT: got hardware {self.hardware!r}, expected one of {', '.join(HARDWARE)}")


def timing_cache(repository: Path) -> Path:
    """Return the file that keeps kernels' times for a repository: beside it, where it is not taken for a model."""
    root = repository.resolve()
    return root.with_name(f".{root.name}.tensorrt-timing")


def module() -> ModuleType:
    """Return the `tensorrt` package. Raises ExportError, which says what to install, where there is none."""
    try:
        return importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:  # the second where its libraries are missing
        raise ExportError(
            f"TensorRT: cannot be imported ({_line(error)}), expected the package on a machine with an NVIDIA GPU; "
            f"{INSTALL} (onnxruntime-gpu in onnxruntime's place, and tensorrt), or leave TensorRT out"
        ) from error


def build(onnx_path: Path, folder: Path, options: Options | None = None, say: Say = print) -> Path:
    """Write `folder`/model.plan, whole, from an ONNX file with a dynamic batch; return its path.

    `folder` must exist. Takes minutes for Stable Diffusion's sizes; `say` is told the stages. Raises ExportError where
    there is no TensorRT, or it lacks what `options` wants, and EngineError where it refuses the graph or finds no GPU.
    """
    options, trt = options or Options(), module()
    log = logger(trt)
    try:
        builder = trt.Builder(log)
    except TypeError as error:  # what its bindings make of a missing driver or device
        raise EngineError(
            f"TensorRT {trt.__version__}: cannot start ({_last(log)}), expected an NVIDIA GPU and its driver; "
            "see nvidia-smi, or run on the machine that will serve"
        ) from error
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    # Held until the end, because the weights stay the parser's.
    parser = trt.OnnxParser(network, log)
    # By its path, so that weights in a file of their own are found beside it.
    if not parser.parse_from_file(str(onnx_path)):
        raise EngineError(f"TensorRT: cannot read {onnx_path.name} ({_parser_error(parser, log)}); export it as ONNX")
    config = configured(trt, builder, network, options)
    config.progress_monitor = _progress(trt, say)
    timings = _timings(config, options.timing_cache, say)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"TensorRT: no engine for {onnx_path.name} ({_last(log)}); a smaller batch needs less memory")
    with whole(folder / FILE) as waiting:
        waiting.write_bytes(plan)
    if options.timing_cache is not None:
        with whole(options.timing_cache) as waiting:
            waiting.write_bytes(timings.serialize())
    return folder / FILE


def configured(trt: ModuleType, builder: Any, network: Any, options: Options) -> Any:
    """Return a builder's configuration: the batch's profile and switches."""
    config = builder.create_builder_config()
    config.add_optimization_profile(_profile(builder, network, options))
    config.clear_flag(trt.BuilderFlag.TF32)  # products of fp32 with 10 bits of the mantissa would not be exact
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    level = HARDWARE[options.hardware]
    if not hasattr(trt.HardwareCompatibilityLevel, level):
        raise ExportError(
            f"TensorRT {trt.__version__}: does not know hardware {options.hardware!r}; update it, or choose another"
        )
    config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)
    return config


def logger(trt: ModuleType) -> Any:
    """Return a logger that keeps errors, a line each, in `errors`, and prints nothing."""

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(_line(msg))

    return Log()


def _profile(builder: Any, network: Any, options: Options) -> Any:
    """Return one profile from batch 1 to the largest, for every input."""
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        batch, *rest = tuple(tensor.shape)
        if batch != -1 or -1 in rest:
            raise ExportError(
                f"TensorRT: input {tensor.name} has dimensions {(batch, *rest)}, expected a dynamic batch (-1) first "
                "and fixed sizes after it"
            )
        shapes = [(size, *rest) for size in (1, options.opt_batch, MAX_BATCH)]
        profile.set_shape(tensor.name, *shapes)
    return profile


def _timings(config: Any, path: Path | None, say: Say) -> Any:
    """Attach the kernels' times in `path` to `config`; none where they are another GPU's or version's."""
    known = path.read_bytes() if path is not None and path.exists() else b""
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, False):
        say(f"TensorRT: the kernel times in {path} are of another GPU or version, and are measured again")
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _progress(trt: ModuleType, say: Say) -> Any:
    """Return a monitor that tells `say` the outermost stages of a build."""

    class Progress(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                say(f"TensorRT: {phase_name}")

        def step_complete(self, phase_name: str, step: int) -> bool:
            return True  # go on

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Progress()


def _parser_error(parser: Any, log: Any) -> str:
    """Return the parser's first error, with its node."""
    if not parser.num_errors:
        return _last(log)
    error = parser.get_error(0)
    node = f"{error.node_operator()} {error.node_name()}".strip()
    return f"{node}: {_line(error.desc())}" if node else _line(error.desc())


def _last(log: Any) -> str:
    return str(log.errors[-1]) if log.errors else "it gives no reason"


def _line(message: object) -> str:
    return " ".join(str(message).split())
