"""Runs an ONNX file in OpenVINO, on the CPU: for exports, for trials without a server, and in the stand-in backend.

OpenVINO compiles a network when it is opened, which takes seconds. What it compiled is kept in a folder of the user's,
and loaded from there the next time (`OpenVinoNetwork.from_cache`). OpenVINO names these files by the content of the
network and by the processor, so another network, or the same folder on another machine, gets another file.

    $SLIME_OPENVINO_CACHE, else $XDG_CACHE_HOME/slime-serve/openvino, else ~/.cache/slime-serve/openvino

The stand-in backend is given a copy of this file (slime_serve.wheel), so it imports nothing of this project.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
CACHE_VARIABLE = "SLIME_OPENVINO_CACHE"
CACHE_BYTES = 16 * 1024**3  # four UNets of Stable Diffusion; beyond it the oldest files leave
INSTALL = "pip install 'slime-serve[openvino]'"
# Of an accelerator's parameters in a config.pbtxt, and its values: how numbers are computed, whatever the file holds.
# Without one OpenVINO would choose bf16 by itself on processors that have it.
PRECISION, FP32, BF16 = "precision", "fp32", "bf16"
_HINTS = {FP32: "f32", BF16: "bf16"}
_ABANDONED_S = 3600.0


class OpenVinoError(RuntimeError):
    """OpenVINO cannot be used here, or refuses a network; one line says why."""


def module() -> Any:
    """Import and return the package `openvino`. Raises OpenVinoError, with the pip line, where it is missing."""
    # The package reports each import to its maker through this module, unless that cannot be imported. Somebody's
    # images are at stake, so nothing is reported.
    sys.modules.setdefault("openvino_telemetry", cast(Any, None))
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise OpenVinoError(f"openvino: cannot be imported ({error}); {INSTALL}") from error


def has_bf16() -> bool:
    """Return whether this processor computes in bf16 (AMX, or AVX-512 BF16). Raises OpenVinoError without OpenVINO."""
    return "BF16" in module().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoNetwork:
    """The ONNX file at `path`, run by `threads` threads (0: all cores) in fp32 or bf16. Raises OpenVinoError.

    inputs, outputs: the tensors' names; of a tensor with several names, all. from_cache: whether it was loaded from the
    cache instead of compiled.
    """

    def __init__(self, path: Path, precision: str = FP32, *, threads: int) -> None:
        package = module()
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            # One request at a time, with all threads: what batches there are come as batches.
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            # Several networks' processes share the cores: bound to one each, they would all take the first.
            "ENABLE_CPU_PINNING": False,
        }
        try:
            core = package.Core()
            with _cache(cache_folder() / precision) as folder:
                kept = {} if folder is None else {"CACHE_DIR": str(folder)}
                network = core.read_model(str(path))
                self._compiled: Any = core.compile_model(network, "CPU", settings | kept)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise OpenVinoError(f"OpenVINO: {path.name} cannot be opened ({reason})") from error
        self.from_cache = bool(self._compiled.get_property("LOADED_FROM_CACHE"))
        self.inputs = tuple(name for each in self._compiled.inputs for name in each.names)
        self.outputs = tuple(name for each in self._compiled.outputs for name in each.names)

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Inputs by name -> outputs by name, arrays of their own."""
        given = {name: np.ascontiguousarray(value) for name, value in inputs.items()}
        answers = self._compiled(given, share_inputs=True, share_outputs=False)
        return {name: value for output, value in answers.items() for name in output.names}


def cache_folder() -> Path:
    """Return the folder for compiled networks, which need not be there."""
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME") or Path("~").expanduser() / ".cache"
    return Path(base, "slime-serve", "openvino")


@contextmanager
def _cache(folder: Path) -> Iterator[Path | None]:
    """Yield a folder with what `folder` holds; new files go into `folder` when the block is through.

    None where it cannot be written. OpenVINO maps these files into memory and trusts them, and a half-written one ends
    the process; so each is written elsewhere, and renamed when it is whole.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder, prefix="."))
    except (OSError, RuntimeError):
        yield None
        return
    try:
        for each in folder.glob("*.blob"):
            with suppress(OSError):  # it left meanwhile, or the disk knows no links
                os.link(each, scratch / each.name)
        yield scratch
        for each in scratch.glob("*.blob"):
            if not (folder / each.name).exists():
                os.replace(each, folder / each.name)
        _bound(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _bound(folder: Path) -> None:
    """Remove the oldest files beyond CACHE_BYTES, and what processes left that were killed."""
    left = CACHE_BYTES
    with suppress(OSError):  # another process removes the same
        for each in sorted(folder.glob("*.blob"), key=lambda path: path.stat().st_mtime, reverse=True):
            left -= each.stat().st_size
            if left < 0:
                each.unlink()
        for each in folder.glob(".*/"):
            if time.time() - each.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(each, ignore_errors=True)
