"""What both trainings share: a run that can be stopped at any moment and goes on from its last state.

Under `torchrun` every process takes a share of each batch and gradients are averaged. On a CPU that beats
threads: one process a core never waits for another inside an operation.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import distributed, nn
from tqdm import tqdm

SAVE_EVERY = 120.0  # seconds


@dataclass(kw_only=True)
class Run:
    """Weights, their running average (EMA), the optimiser and the history of one training."""

    modules: nn.ModuleDict
    optimiser: torch.optim.Optimizer
    path: Path
    peak_rate: float
    decay: float = 0.999
    warmup: int = 100
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.average = {k: v.detach().clone() for k, v in self.modules.state_dict().items()}
        if self.path.exists():
            self._restore()

    def go(self, steps: int, loss_of: Callable[[int], tuple[torch.Tensor, dict[str, float]]]) -> None:
        """Train up to step `steps`; `loss_of(step)` gives the loss and figures worth keeping."""
        if self.step >= steps:
            return
        saved = time.monotonic()
        bar = tqdm(total=steps, initial=self.step, desc=self.path.stem, mininterval=10, disable=share()[0] > 0)
        while self.step < steps:
            figures = self._one(steps, loss_of)
            self.step += 1
            bar.update()
            bar.set_postfix({k: f"{v:.4g}" for k, v in figures.items()}, refresh=False)
            self.history.append({"step": self.step, **figures})
            if time.monotonic() - saved > SAVE_EVERY:
                self.save()
                saved = time.monotonic()
        bar.close()
        self.save()

    def _one(
        self, steps: int, loss_of: Callable[[int], tuple[torch.Tensor, dict[str, float]]]
    ) -> dict[str, float]:
        for group in self.optimiser.param_groups:
            group["lr"] = self.peak_rate * trapezoid(self.step, steps, self.warmup)
        loss, figures = loss_of(self.step)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self._share_gradients()
        nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        self.optimiser.step()
        self._update_average()
        return {"loss": loss.item(), **figures}

    def _share_gradients(self) -> None:
        processes = share()[1]
        if processes == 1:
            return
        gradients = [p.grad for p in self.modules.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        distributed.all_reduce(flat)
        for g, mean in zip(gradients, (flat / processes).split([g.numel() for g in gradients]), strict=True):
            g.copy_(mean.view(g.shape))

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        for key, value in self.modules.state_dict().items():
            if value.is_floating_point():
                self.average[key].lerp_(value, 1 - decay)

    def save(self) -> None:
        """Write beside, then rename: a kill while saving loses nothing."""
        if share()[0] > 0:
            return
        beside = self.path.with_suffix(".partial")
        state = {
            "modules": self.modules.state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "history": json.dumps(self.history),
        }
        torch.save(state, beside)
        os.replace(beside, self.path)

    def _restore(self) -> None:
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        self.modules.load_state_dict(state["modules"])
        for key, value in state["average"].items():
            self.average[key].copy_(value)
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.history = state["step"], json.loads(state["history"])

    def use_average(self) -> None:
        """Put the averaged weights, the ones worth keeping, into the modules."""
        self.modules.load_state_dict(self.average)


def share() -> tuple[int, int]:
    """This process's number and how many there are."""
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def trapezoid(step: int, steps: int, warmup: int, fall: float = 0.25) -> float:
    """Learning-rate factor: linear warm-up, plateau, linear fall over the last quarter."""
    return min(1.0, (step + 1) / warmup, max(0.02, (steps - step) / (fall * steps)))
