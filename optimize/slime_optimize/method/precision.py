"""The precision that the UNet computes in while embeddings are learned: bfloat16 where a measured step says so.

Weights, embeddings and losses are float32 in every case, and masks are always predicted in float32: bfloat16 shortens a
run and is no property of what comes out of it. Processors with AMX multiply bfloat16 matrices several times as fast;
on others it is slower. Attention can stay float32, because on small maps its backward pass in bfloat16 is the slower
one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

AUTO, FP32, BF16 = "auto", "fp32", "bf16"
BF16_BUT_ATTENTION = "bf16, attention in fp32"
ASKED = (AUTO, FP32, BF16)  # what --precision takes
_LOWER = (BF16, BF16_BUT_ATTENTION)
_AMX = "amx_bf16"  # the processor's flag
_CPU_FACTS = Path("/proc/cpuinfo")
# A lower precision has to save so much of a step.
_PAYS = 0.9
# Steps shorter than this are taken three times, and the shortest counts.
_SHORT_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A precision, and in words why it was chosen."""

    precision: str
    reason: str


def decide(asked: str, device: torch.device, kept: str | None = None) -> Decision | None:
    """Return the precision that `asked`, one of ASKED, comes to on this device; None where a step has to be measured.

    `kept` is the precision of a checkpoint: the run that continues it ends as if it had not been stopped. Without AMX,
    and on a GPU, "auto" is float32.
    """
    if kept is not None and (asked == AUTO or kept.startswith(asked)):
        return Decision(precision=kept, reason="that of the run that goes on")
    if asked == FP32 or kept is not None:  # a checkpoint of another precision is of another run, which is refused
        return Decision(precision=asked, reason="--precision")
    if asked == AUTO and device.type != "cpu":
        return Decision(precision=FP32, reason="the default on a GPU")
    if asked == AUTO and not has_amx():
        return Decision(precision=FP32, reason="the processor has no AMX")
    return None


def measured(asked: str, step: Callable[[str], object]) -> Decision:
    """Return the fastest precision that `asked` allows; `step` takes a whole step in a given one, and is timed."""
    names = _LOWER if asked == BF16 else (FP32, *_LOWER)
    seconds = {name: _seconds(step, name) for name in names}
    best = min(_LOWER, key=seconds.__getitem__)
    if asked == AUTO and seconds[best] > _PAYS * seconds[FP32]:
        best = FP32
    each = "; ".join(f"{name}: {taken:.2f} s" for name, taken in seconds.items())
    return Decision(precision=best, reason=f"a step was measured, {each}")


def has_amx() -> bool:
    """Return whether the processor multiplies bfloat16 matrices in tiles (AMX). False where Linux does not say."""
    return _CPU_FACTS.is_file() and _AMX in _CPU_FACTS.read_text(encoding="utf-8").split()


@contextmanager
def computing(precision: str, unet: Any) -> Iterator[None]:
    """Let the UNet compute in `precision` inside a with-block; its weights stay as they are."""
    if precision == FP32:
        yield
        return
    layers = [each for each in unet.modules() if "upcast_attention" in vars(each)]  # attention
    before = [each.upcast_attention for each in layers]
    try:
        for each in layers:
            each.upcast_attention |= precision == BF16_BUT_ATTENTION
        with torch.autocast(unet.device.type, torch.bfloat16):
            yield
    finally:
        for each, upcast in zip(layers, before, strict=True):
            each.upcast_attention = upcast


def single(device: torch.device) -> Any:
    """Return a context in which nothing is computed in a lower precision, whatever surrounds it."""
    lower = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if lower else nullcontext()


def _seconds(step: Callable[[str], object], precision: str) -> float:
    """Return what a step takes. The first also counts where it is long: what only the first pays is small beside it."""

    def once() -> float:
        begun = time.perf_counter()
        step(precision)
        return time.perf_counter() - begun

    first = once()
    return first if first > _SHORT_S else min(once(), once())
