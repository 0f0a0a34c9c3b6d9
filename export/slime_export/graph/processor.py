"""Says what this machine's processor is, and which of the instructions it has that make networks faster."""

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


def described(path: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name and those of its instructions, as "AMD EPYC; has AVX-512, …; has no AMX BF16, …"."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags", "").split()
    there = ", ".join(name for flag, name in _FASTER.items() if flag in flags)
    lacking = ", ".join(name for flag, name in _FASTER.items() if flag not in flags)
    told = [facts.get("model name", platform.machine())]
    return "; ".join(told + [f"has {there}"] * bool(there) + [f"has no {lacking}"] * bool(lacking))
