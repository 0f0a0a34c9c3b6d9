"""What both trainings share: a run that can be stopped at any moment and goes on from its last state.

Under `torchrun` every process takes a share of each batch and gradients are averaged. On a CPU that beats
threads: one process a core never waits for another inside an operation.
"""

from __future__ import annotations

import json
import math
import pickle
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from tqdm import tqdm

from slime_optimize.files import whole

SAVE_EVERY = 120.0  # seconds
WATCH_EVERY = 250  # steps between measurements that `Run.watch` makes
FETCH_EVERY = 50  # steps between readings of the loss on CUDA: every reading waits for the GPU to catch up
Figures = Mapping[str, float | torch.Tensor]
LossOf = Callable[[int], tuple[torch.Tensor, Figures]]


class TrainingError(RuntimeError):
    """A training that cannot go on: an unreadable state, or a loss that is no number. One line."""


@dataclass(kw_only=True)
class Run:
    """Weights, their running average (EMA), the optimiser and the history of one training.

    `fresh_since` is the step from which the optimiser's moments count: the rate warms up from there, because a
    state unpacked from shards has none. `facts` are written down with every stretch of steps in `sessions`.
    `mend_gradients` is called between a step's backward pass and the optimiser; `watch` gives further figures now and
    then. `graphed`: on CUDA a step is captured as one graph and replayed, which its loss must allow (no host numbers,
    no waiting, chance from the device); the optimiser's rate is then a tensor there.
    """

    modules: nn.ModuleDict
    optimiser: torch.optim.Optimizer
    path: Path
    peak_rate: float
    decay: float = 0.999
    warmup: int = 100
    step: int = 0
    fresh_since: int = 0
    facts: dict[str, str | int | float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    sessions: list[dict[str, Any]] = field(default_factory=list)
    mend_gradients: Callable[[], None] | None = None
    watch: Callable[[], Figures] | None = None
    graphed: bool = False

    def __post_init__(self) -> None:
        self.device = next(self.modules.parameters()).device
        live = self.modules.state_dict()  # its tensors are the weights themselves, not copies
        self.average = {k: v.detach().clone() for k, v in live.items()}
        keys = [k for k, v in live.items() if v.is_floating_point()]
        self._averaged, self._live = [self.average[k] for k in keys], [live[k] for k in keys]
        self._newness = torch.tensor(1.0, device=self.device)  # 1 - decay
        self._graph: torch.cuda.CUDAGraph | None = None
        self._unread: list[tuple[int, Figures]] = []
        if self.path.exists():
            self._restore()

    def go(self, steps: int, loss_of: LossOf, seconds: float = math.inf) -> None:
        """Train up to step `steps`, or for `seconds`, whichever is over first.

        `loss_of(step)` gives the loss and figures worth keeping. The rate falls over the last quarter of the steps or
        of the time, so that both endings find it low. Raises TrainingError when the loss is no number any more.
        """
        if self.step >= steps or seconds <= 0:
            return
        clock = _Clock(seconds)
        saved = self._started = time.monotonic()
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        facts = {"device": device, "processes": share()[1], "threads": torch.get_num_threads(), **self.facts}
        self.sessions.append({"first": self.step, "last": self.step, "seconds": 0.0, **facts})
        bar = tqdm(total=steps, initial=self.step, desc=self.path.stem, mininterval=10, disable=share()[0] > 0)
        while self.step < steps and (left := clock.left()) > 0:
            self._one(min((steps - self.step) / steps, left), loss_of)
            self.step += 1
            bar.update()
            if self.device.type != "cuda" or self.step % FETCH_EVERY == 0:
                figures = self._read()
                bar.set_postfix({k: f"{v:.4g}" for k, v in figures.items()}, refresh=False)
            if time.monotonic() - saved > SAVE_EVERY:
                self.save()
                saved = time.monotonic()
        bar.close()
        self.save()

    def _one(self, left: float, loss_of: LossOf) -> None:
        rate = self.peak_rate * trapezoid(left, (self.step - self.fresh_since + 1) / self.warmup)
        for group in self.optimiser.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        self._newness.fill_(1 - min(self.decay, (1 + self.step) / (10 + self.step)))
        figures = dict(self._replayed(loss_of) if self.graphed else self._stepped(loss_of))
        if self.watch and self.step % WATCH_EVERY == 0:
            figures |= self.watch()
        self._unread.append((self.step + 1, figures))

    def _stepped(self, loss_of: LossOf) -> Figures:
        loss, figures = loss_of(self.step)
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self._share_gradients()
        if self.mend_gradients:
            self.mend_gradients()
        nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        self.optimiser.step()
        with torch.no_grad():
            for average, live in zip(self._averaged, self._live, strict=True):
                average.lerp_(live, self._newness.to(average.dtype))
        return {"loss": loss.detach(), **figures}

    def _replayed(self, loss_of: LossOf) -> Figures:
        """Take a step as one graph: each of its some thousand kernels would cost the host more than the GPU."""
        if self._graph is None:
            side = torch.cuda.Stream(self.device)
            side.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(side):
                for _ in range(3):  # libraries choose their kernels now, not while the graph is captured
                    self._stepped(loss_of)
            torch.cuda.current_stream(self.device).wait_stream(side)
            self.optimiser.zero_grad(set_to_none=True)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._kept = self._stepped(loss_of)
        self._graph.replay()
        return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in self._kept.items()}

    def _read(self) -> dict[str, float]:
        """Move the figures that are still on the device into the history; the last step's are returned."""
        for step, figures in self._unread:
            numbers = {k: float(v) for k, v in figures.items()}
            if not math.isfinite(numbers["loss"]):
                raise TrainingError(
                    f"{self.path.stem}: the loss is {numbers['loss']} at step {step}, expected a number; "
                    f"the last good state is in {self.path}, go on from it with a lower --rate"
                )
            self.history.append({"step": step, **numbers})
        self._unread.clear()
        return {k: v for k, v in self.history[-1].items() if k != "step"} if self.history else {}

    def _share_gradients(self) -> None:
        processes = share()[1]
        if processes == 1:
            return
        gradients = [p.grad for p in self.modules.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        distributed.all_reduce(flat)
        means = torch.split(flat / processes, [g.numel() for g in gradients])
        for g, mean in zip(gradients, means, strict=True):
            g.copy_(mean.view(g.shape))

    def save(self) -> None:
        """Write beside, then rename: a kill while saving loses nothing."""
        self._read()
        if self.sessions:
            self.sessions[-1] |= {"last": self.step, "seconds": round(time.monotonic() - self._started, 1)}
        if share()[0] > 0:
            return
        state = {
            "modules": self.modules.state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "fresh_since": self.fresh_since,
            "history": json.dumps(self.history),
            "sessions": json.dumps(self.sessions),
        }
        write_state(state, self.path)

    def _restore(self) -> None:
        state = read_state(self.path)
        self.modules.load_state_dict(state["modules"])
        for key, value in state["average"].items():
            self.average[key].copy_(value)
        self.step, self.history = state["step"], json.loads(state["history"])
        self.sessions = json.loads(state.get("sessions", "[]"))
        self.fresh_since = state.get("fresh_since", 0)
        if "optimiser" in state:
            stored = state["optimiser"]
            # The moments, in whichever implementation this device has, not the one that they were saved from.
            for theirs, ours in zip(stored["param_groups"], self.optimiser.param_groups, strict=True):
                theirs.update({k: ours[k] for k in ("fused", "foreach", "capturable", "lr") if k in ours})
            self.optimiser.load_state_dict(stored)
        else:
            self.fresh_since = self.step

    def use_average(self) -> None:
        """Put the averaged weights, the ones worth keeping, into the modules."""
        self.modules.load_state_dict(self.average)


class _Clock:
    """The share of the time that is left, the same in every process."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.started = seconds, time.monotonic()

    def left(self) -> float:
        if math.isinf(self.seconds):
            return 1.0
        left = torch.tensor(1 - (time.monotonic() - self.started) / self.seconds, dtype=torch.float64)
        if share()[1] > 1:  # one that stops while another goes on would leave it waiting for ever
            distributed.broadcast(left, 0)
        return float(left)


def read_state(path: Path) -> dict[str, Any]:
    """Return what `Run.save` wrote, on the CPU. Raises TrainingError when it is not there or cannot be read."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise TrainingError(f"state {path}: not there; train with backbone/train.py --state {path.parent}") from error
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise TrainingError(f"state {path}: cannot be read, expected a training's state; move it away") from error
    return state


def write_state(state: dict[str, Any], path: Path) -> None:
    """Write the state, whole or not at all."""
    with whole(path) as waiting:
        torch.save(state, waiting)


def share() -> tuple[int, int]:
    """Return this process's number and how many there are."""
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


@contextmanager
def first_then_others() -> Iterator[None]:
    """Run the block in the first process before it runs in any other: what it wrote is there for them."""
    process, processes = share()
    if process > 0:
        distributed.all_reduce(torch.zeros(1))  # on the CPU, whichever device trains
    yield
    if process == 0 and processes > 1:
        distributed.all_reduce(torch.zeros(1))


def trapezoid(left: float, warm: float, fall: float = 0.25) -> float:
    """Return the learning rate's factor, from the shares of the run that are left and of the warm-up that are done.

    Linear warm-up, plateau, linear fall over the last quarter.
    """
    return min(1.0, warm, max(0.02, left / fall))
