"""Chooses which of ONNX Runtime's providers runs a served ONNX model, as Triton's configuration says it.

Keys and values are those of Triton's ONNX Runtime backend (its README, "ONNX Runtime with TensorRT optimization" and
"with CUDA Execution Provider optimization"). Without an accelerator Triton takes the CUDA provider where there is a
GPU, and the CPU elsewhere. `cpu` is the CPU everywhere, and graphs rewritten for it (lowering.for_cpu). `openvino` is
a format of its own (slime_repository.contract). With another, a machine without a GPU refuses the model.
"""

from __future__ import annotations

from collections.abc import Mapping

from slime_export.errors import ExportError
from slime_repository.config import CPU, Accelerator
from slime_repository.contract import MAX_BATCH

KINDS = (CPU, "cuda", "tensorrt")
# On the server; whoever can write there decides what the server runs, so it is no shared folder such as /tmp.
CACHE = "/var/cache/slime"


def accelerator(
    kind: str,
    *,
    precision: str,
    inputs: Mapping[str, tuple[int, ...]],
    cache: str = CACHE,
) -> Accelerator:
    """Return the accelerator `cpu`, `cuda` or `tensorrt` for an ONNX file of `precision` (fp32, fp16, bf16, int8).

    inputs: names with dimensions after the batch. cache: the server's folder for engines, which it otherwise builds
    anew, for minutes, whenever it starts. Raises ExportError for another kind.
    """
    if kind == CPU:
        return Accelerator(name=CPU)
    if kind == "cuda":
        # fp32 is promised to be exact; by default products would keep 10 bits of the mantissa.
        exact = {"use_tf32": "0"} if precision == "fp32" else {}
        return Accelerator(name="cuda", parameters={"cudnn_conv_use_max_workspace": "1"} | exact)
    if kind != "tensorrt":
        raise ExportError(f"accelerator: got {kind!r}, expected one of {', '.join(KINDS)}, or none")
    parameters = {
        "precision_mode": precision.upper(),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": cache,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": cache,
        # Without these, each batch that was not seen before builds an engine anew while requests wait.
        "trt_profile_min_shapes": _shapes(inputs, 1),
        "trt_profile_opt_shapes": _shapes(inputs, 1),
        "trt_profile_max_shapes": _shapes(inputs, MAX_BATCH),
    }
    return Accelerator(name="tensorrt", parameters=parameters)


def _shapes(inputs: Mapping[str, tuple[int, ...]], batch: int) -> str:
    """Return `LATENTS:8x4x64x64` and so on, as ONNX Runtime reads profiles."""
    return ",".join(f"{name}:{'x'.join(map(str, (batch, *dims)))}" for name, dims in inputs.items())
