"""What a benchmark says of the machine it ran on: processor, cores, memory, load, versions. Imports no PyTorch."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slime_export.machine import instructions, processor


def facts(**more: Any) -> dict[str, Any]:
    """Return the part `machine` of a result, taken before the run: the load is what else the machine was doing."""
    return {
        "cpu": processor(),
        "instructions": instructions(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "load_before": [round(each, 1) for each in os.getloadavg()],
        "date": time.strftime("%Y-%m-%d"),
        **more,
    }


def described(machine: Mapping[str, Any]) -> str:
    """Return one line for a page: processor or GPU, threads, versions of the libraries that were used."""
    versions = [f"{name} {version}" for name, version in machine["versions"].items() if version != "None"]
    on_cpu = machine["device"] == "cpu"
    where = "; ".join(filter(None, (machine["cpu"], machine.get("instructions")))) if on_cpu else machine["device"]
    return f"{where}, {machine['threads']} threads; {', '.join(versions)}"


def set_threads(threads: int) -> None:
    """Set the number of threads that numerical libraries of processes started from now on use."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    os.environ.update(dict.fromkeys(names, str(threads)))


def free_bytes() -> float:
    """Return the memory that can be had without swapping; infinity where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
