"""The tritonserver inside the ``nvidia-pytriton`` wheel: where it lies and what it takes to start it.

The wheel is used for its files alone; none of its Python code runs. It brings no ONNX Runtime backend: the folder
``backends/onnxruntime`` beside this package stands in.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from slime_serve.settings import ServerError

STAND_IN = Path(__file__).resolve().parent.parent / "backends" / "onnxruntime"
_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """Paths of the installed wheel."""

    server: Path
    stub: Path
    backends: Path
    caches: Path
    libraries: Path


def find() -> Wheel:
    """The installed wheel; ServerError in one line where there is none for this machine or this Python."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise ServerError(
            f"tritonserver: its wheel is for Linux on x86-64, this is {sys.platform} on {platform.machine()}; "
            "serve the repository with the container in serve/README.md"
        )
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise ServerError("tritonserver: package nvidia-pytriton is not installed; run: pip install '.[serve]'")
    package = Path(spec.origin).parent
    root = package / "tritonserver"
    stub = root / "python_backend_stubs" / _VERSION / "triton_python_backend_stub"
    if not stub.exists():
        have = ", ".join(sorted(path.name for path in stub.parent.parent.glob("*"))) or "none"
        raise ServerError(f"tritonserver: its wheel supports Python {have}, this is {_VERSION}; use one of those")
    return Wheel(
        server=root / "bin" / "tritonserver",
        stub=stub,
        backends=root / "backends",
        caches=root / "caches",
        libraries=package.parent / "nvidia_pytriton.libs",
    )


def assemble_backends(wheel: Wheel, folder: Path) -> None:
    """Backends ``python`` and ``onnxruntime`` in ``folder``: copies, because Triton refuses links out of it."""
    skip_caches = shutil.ignore_patterns("__pycache__")
    python = folder / "python"
    shutil.copytree(wheel.backends / "python", python, ignore=skip_caches)
    stub = python / wheel.stub.name
    shutil.copy2(wheel.stub, stub)
    # Installing from a wheel loses the executable bit.
    stub.chmod(0o755)
    shutil.copytree(STAND_IN, folder / "onnxruntime", ignore=skip_caches)


def assemble_python(folder: Path) -> None:
    """A virtual environment in ``folder`` for the server's Python processes.

    They ignore PYTHONPATH and PYTHONDONTWRITEBYTECODE, but take after the first ``python3`` on PATH. One of our own
    gives them the installed packages without those added by path files, so that models import what was published
    beside them and not a working copy; and keeps caches, which count as a changed model, out of the repository.
    """
    executable = folder / "bin" / "python3"
    executable.parent.mkdir(parents=True)
    executable.symlink_to(Path(sys.base_prefix, "bin", f"python{_VERSION}"))
    (folder / "pyvenv.cfg").write_text(f"home = {sys.base_prefix}/bin\ninclude-system-site-packages = false\n")
    packages = folder / "lib" / f"python{_VERSION}" / "site-packages"
    packages.mkdir(parents=True)
    installed = list(dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib")))
    (packages / "sitecustomize.py").write_text(
        f"import sys\nsys.dont_write_bytecode = True\nsys.path.extend({installed!r})\n"
    )


def environment(wheel: Wheel, python: Path, threads: int) -> dict[str, str]:
    """This process's environment with what the server needs; ``python``: the folder of ``assemble_python``."""
    return {
        # The official ONNX Runtime packages report use to their maker from 1.32 on, unless told not to before
        # they are imported. Somebody's images are at stake, so reporting takes a deliberate 0 of the caller.
        "ORT_DISABLE_TELEMETRY": "1",
        **os.environ,
        "PATH": f"{python / 'bin'}:{os.environ.get('PATH', os.defpath)}",
        "LD_LIBRARY_PATH": f"{sysconfig.get_config_var('LIBDIR')}:{wheel.libraries}",
        "SLIME_SERVE_THREADS": str(threads),
        # Of numpy in the models around the networks. Its threads go on spinning after a product, which takes from the
        # networks more than they give: a third of a mask's CPU time on two cores (benchmarks/load.py).
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
