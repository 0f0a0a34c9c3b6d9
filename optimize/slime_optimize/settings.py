"""What an optimisation run is made of: one frozen dataclass, and named presets of it.

Where the paper leaves something open, the choice is a field here with its reason.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from slime_optimize.attention import Layers
from slime_optimize.errors import InputError

CROSS_ENTROPIES = ("maps", "logits")
READOUTS = ("tokens", "parts")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides the learned embeddings, and the masks made from them.

    Defaults are the paper's for SD 2.1. Raises InputError, naming the field, for a value out of range.
    """

    learning_rate: float = 0.1  # Adam; decisive: ten times more or less loses half the IoU
    epochs: int = 200  # passes over the training images
    steps: int | None = None  # instead of epochs
    batch_size: int = 1  # augmented views per step
    t_opt: tuple[int, int] = (5, 100)  # drawn uniformly at each step, both ends included
    t_test: int = 100
    alpha: float = 1.0  # weight of the WAS loss
    beta: float = 0.005  # weight of the diffusion loss, which keeps embeddings understandable
    # "maps": -log of the part's own share of the softmax over all 77 tokens (the paper's A_ca);
    # "logits": K-way softmax over mean raw logits, for the WAS loss too (the published code).
    cross_entropy: str = "maps"
    # A part weighs (all pixels / its pixels) ** class_weight in the cross entropy. With the paper's 1 a backbone
    # that is unsure sees small parts everywhere.
    class_weight: float = 1.0
    # Cross maps at test time. "tokens": the softmax over all 77 tokens of each head, then the mean (eq. 3);
    # "parts": one softmax over the parts of the mean logits, what cross_entropy "logits" learns. Heads of
    # 16 channels are weak judges one by one, so a small backbone wants the latter.
    readout: str = "tokens"
    threshold: float = 0.2  # a part whose cross map stays under it everywhere is left out
    prompt_word: str = "part"  # repeated, it gives the embeddings to start from
    flip: float = 0.5  # chance of a mirrored view
    crop: tuple[float, float] = (0.5, 1.0)  # side of the random square crop, of the whole side
    rotation: float = 30.0  # degrees, either way
    blur: tuple[float, float] = (0.0, 1.0)  # Gaussian sigma, in pixels of a 512-pixel image
    recolour: float = 0.0  # chance that a part of a view gets a random mean colour; not in the paper
    layers: Layers = field(default_factory=Layers)

    def __post_init__(self) -> None:
        _check(self.learning_rate > 0, "learning_rate", self.learning_rate, "a number above 0")
        _check(self.epochs >= 1, "epochs", self.epochs, "1 or more")
        _check(self.steps is None or self.steps >= 1, "steps", self.steps, "1 or more")
        _check(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        _check(0 <= self.t_test < 1000, "t_test", self.t_test, "0 to 999")
        low, high = self.t_opt
        _check(0 <= low <= high < 1000, "t_opt", self.t_opt, "two timesteps LOW HIGH within 0 to 999")
        _check(self.alpha >= 0, "alpha", self.alpha, "0 or more")
        _check(self.beta >= 0, "beta", self.beta, "0 or more")
        known = " or ".join(CROSS_ENTROPIES)
        _check(self.cross_entropy in CROSS_ENTROPIES, "cross_entropy", self.cross_entropy, known)
        _check(0 <= self.class_weight <= 1, "class_weight", self.class_weight, "an exponent from 0 to 1")
        _check(self.readout in READOUTS, "readout", self.readout, " or ".join(READOUTS))
        _check(0 <= self.threshold <= 1, "threshold", self.threshold, "0 to 1")
        _check(bool(self.prompt_word.strip()), "prompt_word", self.prompt_word, "a word")
        _check(0 <= self.flip <= 1, "flip", self.flip, "a chance from 0 to 1")
        _check(0 < self.crop[0] <= self.crop[1] <= 1, "crop", self.crop, "two fractions LOW HIGH in (0, 1]")
        _check(0 <= self.rotation <= 180, "rotation", self.rotation, "0 to 180 degrees")
        _check(0 <= self.recolour <= 1, "recolour", self.recolour, "a chance from 0 to 1")
        _check(0 <= self.blur[0] <= self.blur[1], "blur", self.blur, "two sigmas LOW HIGH, 0 or more")

    @property
    def over_parts(self) -> bool:
        """Whether test-time cross maps are a softmax over the parts alone."""
        return self.readout == "parts"

    def total_steps(self, images: int) -> int:
        """Steps of a run on `images` training images."""
        return self.steps if self.steps is not None else -(-self.epochs * images // self.batch_size)

    def changed(self, values: Mapping[str, Any], source: str = "settings") -> Settings:
        """A copy with JSON-like `values` in place; InputError for names or kinds that do not fit."""
        known = {each.name for each in fields(self)}
        for name in values:
            if name not in known:
                raise InputError(f"{source}: unknown setting {name!r}, expected one of {', '.join(sorted(known))}")
        try:
            return replace(self, **{name: _native(name, value) for name, value in values.items()})
        except InputError:
            raise
        except (TypeError, KeyError, ValueError) as error:
            raise InputError(f"{source}: a value of the wrong kind ({error})") from error

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values; `Settings().changed(x.as_json())` gives x back."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        values["layers"] = {"cross": list(self.layers.cross), "self": list(self.layers.self_)}
        return values


def _check(holds: bool, name: str, got: object, expected: str) -> None:
    if not holds:
        raise InputError(f"{name}: got {got}, expected {expected}")


def _native(name: str, value: Any) -> Any:
    if name == "layers" and not isinstance(value, Layers):
        return Layers(cross=tuple(value["cross"]), self_=tuple(value["self"]))
    if name in ("t_opt", "crop", "blur"):
        low, high = value
        return (low, high)
    return value


PRESETS: dict[str, Settings] = {"paper": Settings()}


def preset(name: str, recommended: Mapping[str, Any] | None = None) -> Settings:
    """The named preset, with what the backbone itself recommends for it in place."""
    if name not in PRESETS:
        raise InputError(f"preset {name!r}: unknown, expected one of {', '.join(sorted(PRESETS))}")
    return PRESETS[name].changed(recommended or {}, source="the backbone's slime.json")
