"""What this machine's processor is, which instructions it has that make networks faster, and what this process took."""

from __future__ import annotations

import platform
from pathlib import Path

# Flags of /proc/cpuinfo.
_FASTER = {
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_bf16": "AMX BF16",
    "amx_int8": "AMX INT8",
}
_FACTS = Path("/proc/cpuinfo")


def described(path: Path = _FACTS) -> str:
    """Return the processor's name and those of its instructions, as "AMD EPYC; has AVX-512, …; has no AMX BF16, …"."""
    return "; ".join(filter(None, (processor(path), instructions(path))))


def processor(path: Path = _FACTS) -> str:
    """Return the processor's name, as far as the system tells it."""
    return _facts(path).get("model name") or platform.processor() or platform.machine()


def instructions(path: Path = _FACTS) -> str:
    """Return which instructions the processor has and which not, empty where the system does not tell."""
    told = _facts(path).get("flags")
    if told is None:
        return ""
    flags = told.split()
    there = ", ".join(name for flag, name in _FASTER.items() if flag in flags)
    lacking = ", ".join(name for flag, name in _FASTER.items() if flag not in flags)
    return "; ".join([f"has {there}"] * bool(there) + [f"has no {lacking}"] * bool(lacking))


def peak_bytes() -> int:
    """Return the largest resident memory that this process had; 0 where the system does not tell.

    Not `resource`: its figure begins with what the process that started this one had.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def _facts(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
