"""A run's state on disk: a run that was stopped, however that was, continues and ends as if it had not been.

    OUT/checkpoint.safetensors   embeddings, Adam's state, losses, snapshots; the rest as JSON in its metadata

Random generators need no place in it: every step has its own (see seeds.py). No pickle.

Shape suffixes: K parts, D text width, S steps done, C snapshots.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from slime_optimize.data.annotations import Example
from slime_optimize.data.validation import Measured
from slime_optimize.errors import InputError, first_line
from slime_optimize.method.precision import FP32
from slime_optimize.old_names import in_current_words

CHECKPOINT_FILE = "checkpoint.safetensors"
FORMAT = 1
_ADAM = "adam."
_SHOWN = 3  # differences between two runs, in one line


@dataclass(frozen=True, kw_only=True)
class State:
    """What a run has after `step` steps.

    learned_KD (K-1,D) float32; adam: its tensors by name; losses_SL float64; snapshots: embeddings by the step they
    were kept at; measured: the results of validation; seconds: the time it took.
    """

    step: int
    learned_KD: Tensor
    adam: Mapping[str, Tensor]
    losses_SL: Tensor
    snapshots: Mapping[int, Tensor]
    measured: Measured
    seconds: float


class Checkpoint:
    """The checkpoint of a run that writes into `folder`; the next is due `every` seconds after the last one."""

    def __init__(self, folder: Path, every: float = 30.0) -> None:
        self.path = folder / CHECKPOINT_FILE
        self._waiting = self.path.with_name(f".{CHECKPOINT_FILE}.partial")
        self._every = every
        self._last = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether it is time for the next one."""
        return time.monotonic() - self._last >= self._every

    def save(self, state: State, identity: Mapping[str, Any]) -> None:
        """Write the state, whole or not at all, with what `load` compares: `identity`, plain JSON values."""
        facts = {
            "format": FORMAT,
            "identity": identity,
            "step": state.step,
            "seconds": state.seconds,
            "snapshots": list(state.snapshots),
            "found": {"iou_by_step": list(state.measured.iou_by_step.items()), "step": state.measured.step},
            "report": state.measured.report,
        }
        tensors = {"learned": state.learned_KD, "losses": state.losses_SL}
        tensors |= {f"{_ADAM}{name}": tensor for name, tensor in state.adam.items()}
        tensors |= {f"snapshot.{step}": tensor for step, tensor in state.snapshots.items()}
        if state.measured.learned_KD is not None:
            tensors["best"] = state.measured.learned_KD
        plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._waiting.write_bytes(save(plain, metadata={"state": json.dumps(facts)}))
        self._waiting.replace(self.path)
        self._last = time.monotonic()

    def load(self, identity: Mapping[str, Any]) -> State | None:
        """Return the state to continue from, or None. Raises InputError for a checkpoint of another run, or damaged."""
        if not self.path.exists():
            return None
        try:
            facts, tensors = _read(self.path)
            same = in_current_words(facts["identity"]) if facts["format"] == FORMAT else {"format": facts["format"]}
            differing = _differences(same, json.loads(json.dumps(identity)))
            state = None if differing else _state(facts, tensors)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"checkpoint {self.path}: damaged ({first_line(error)}); begin anew with --restart"
            ) from error
        if differing:
            raise InputError(
                f"checkpoint {self.path}: is of another run ({'; '.join(differing)}); repeat that run's command to "
                "go on with it, add --restart to begin anew, or choose another --out"
            )
        return state

    def precision(self) -> str | None:
        """Return the precision of the run that is kept, None where there is none or it cannot be read."""
        try:
            facts, _ = _read(self.path)
            return str(facts["identity"].get("precision", FP32))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError):
            return None  # what is wrong, `load` says

    def remove(self) -> None:
        """Remove the checkpoint, if there is one."""
        for path in (self.path, self._waiting):
            path.unlink(missing_ok=True)


def digest(example: Example) -> str:
    """Return the sha256 of the pixels and the mask: a mask painted anew makes another run."""
    made = hashlib.sha256(f"{example.name} {example.image_HW3.shape}".encode())
    made.update(example.image_HW3.tobytes())
    made.update(example.mask_HW.tobytes())
    return made.hexdigest()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        facts = json.loads((file.metadata() or {})["state"])
    if not isinstance(facts, dict):
        raise ValueError("its state is no JSON object")
    return facts, tensors


def _state(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> State:
    found = facts["found"]
    losses_SL = tensors["losses"]
    if len(losses_SL) != facts["step"]:
        raise ValueError(f"losses of {len(losses_SL)} steps, expected {facts['step']}")
    return State(
        step=facts["step"],
        learned_KD=tensors["learned"],
        adam={name.removeprefix(_ADAM): value for name, value in tensors.items() if name.startswith(_ADAM)},
        losses_SL=losses_SL,
        snapshots={step: tensors[f"snapshot.{step}"] for step in facts["snapshots"]},
        measured=Measured(
            iou_by_step={int(step): float(iou) for step, iou in found["iou_by_step"]},
            step=found["step"],
            learned_KD=tensors.get("best"),
            report=facts["report"],
        ),
        seconds=facts["seconds"],
    )


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Return `seed: its 0, here 1`, for the first few that differ."""
    names = [name for name in {**ours, **theirs} if theirs.get(name) != ours.get(name)]
    shown = [f"{name}: its {_short(theirs.get(name))}, here {_short(ours.get(name))}" for name in names[:_SHOWN]]
    return shown + ([f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else [])


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:12]}…"


def adam_state(adam: torch.optim.Adam) -> dict[str, Tensor]:
    """Return the tensors of the optimiser's one parameter by name; empty before the first step."""
    states = adam.state_dict()["state"]
    return dict(states[0]) if states else {}


def restore_adam(adam: torch.optim.Adam, state: Mapping[str, Tensor]) -> None:
    """Load tensors from `state`, as `adam_state` returns them, back into the optimiser."""
    groups = adam.state_dict()["param_groups"]
    adam.load_state_dict({"state": {0: dict(state)} if state else {}, "param_groups": groups})
