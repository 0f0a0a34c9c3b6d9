"""The tritonserver inside the ``nvidia-pytriton`` wheel: where it lies and what it takes to start it.

The wheel is used for its files alone; none of its Python code runs. It brings no ONNX Runtime backend: the folder
``backends/onnxruntime`` stands in, which lies in the installed package, or beside it in a checkout.
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

import slime_repository
from slime_repository import openvino_network
from slime_serve.settings import ServerError

INSTALL = "pip install 'slime-serve[serve]'"


def _stand_in() -> Path:
    """Return the folder of the stand-in backend: in the installed package, or else in the checkout around it."""
    package = Path(__file__).resolve().parent
    found = package / "backends" / "onnxruntime"
    return found if found.is_dir() else package.parent / "backends" / "onnxruntime"


STAND_IN = _stand_in()
# A finder at the end of sys.meta_path is asked for a module only when nothing on sys.path has it.
_SITECUSTOMIZE = """\
import sys
from importlib.machinery import PathFinder


class Installed:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return PathFinder.find_spec(name, {installed!r} if path is None else path, target)


sys.dont_write_bytecode = True
sys.meta_path.append(Installed)
"""
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
        raise ServerError(f"tritonserver: package nvidia-pytriton is not installed; run: {INSTALL}")
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
    # A working copy is not importable there; what the stand-in imports lies beside it.
    beside = folder / "onnxruntime" / "slime_repository"
    beside.mkdir()
    for needed in (slime_repository.__file__, openvino_network.__file__):
        shutil.copy(str(needed), beside)


def assemble_python(folder: Path) -> None:
    """A virtual environment in ``folder`` for the server's Python processes.

    They ignore PYTHONPATH and PYTHONDONTWRITEBYTECODE, but take after the first ``python3`` on PATH. One of our own
    gives them the installed packages without those added by path files, and only after everything on sys.path: Triton
    appends the model's folder there, and models must import the code that was published beside them, neither a working
    copy nor an installed one. It also keeps caches, which count as a changed model, out of the repository.
    """
    executable = folder / "bin" / "python3"
    executable.parent.mkdir(parents=True)
    executable.symlink_to(Path(sys.base_prefix, "bin", f"python{_VERSION}"))
    (folder / "pyvenv.cfg").write_text(f"home = {sys.base_prefix}/bin\ninclude-system-site-packages = false\n")
    packages = folder / "lib" / f"python{_VERSION}" / "site-packages"
    packages.mkdir(parents=True)
    installed = list(dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib")))
    (packages / "sitecustomize.py").write_text(_SITECUSTOMIZE.format(installed=installed))


_KEPT_BYTES = 16 << 20  # in each process


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
        # networks more than they give: a third of a mask's CPU time on two cores (benchmarks/load).
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        # glibc gives arrays of some 100 kB back to the system when they are freed, and a mask makes and frees dozens:
        # the pages that come anew each time took half the time of numpy's work.
        "MALLOC_MMAP_THRESHOLD_": str(_KEPT_BYTES),
        "MALLOC_TRIM_THRESHOLD_": str(_KEPT_BYTES),
    }
