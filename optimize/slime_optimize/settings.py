"""What an optimisation run is made of: one frozen dataclass. Named sets of it are in presets.py.

Where the paper leaves something open, the choice is a field here with its reason.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from slime_image import CHANNEL_ORDERS
from slime_optimize.errors import InputError
from slime_optimize.method.layers import Layers
from slime_was import Postprocess

# The settings that are one word of a few.
CHOICES = {
    "prompt_times": ("tokens", "parts"),
    "cross_entropy": ("maps", "logits"),
    "was_source": ("tokens", "parts"),
    "was_reduction": ("mean", "sum"),
    "class_counts": ("all", "foreground"),
    "readout": ("tokens", "parts"),
    "channel_order": CHANNEL_ORDERS,
    "encoder": ("vae", "tiny"),
    "posterior": ("mean", "sample"),
    "part_schedule": ("run", "epoch"),
    "schedule": ("constant", "cosine"),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides the learned embeddings, and the masks made from them.

    Defaults are the paper's for SD 2.1. Raises InputError, naming the field, for a value out of range.
    """

    # How long, and how fast.
    learning_rate: float = 0.1  # Adam; decisive: ten times more or less loses half the IoU
    schedule: str = "constant"  # of the learning rate; "cosine" lets it fall to 0 over the run
    epochs: int = 200  # passes over the training images
    steps: int | None = None  # instead of epochs
    batch_size: int = 1  # augmented views per step
    steps_per_view: int = 1  # steps that take the same encoded views, each with noise and timesteps of its own
    t_opt: tuple[int, int] = (5, 100)  # drawn uniformly at each step, both ends included
    prompt_word: str = "part"  # repeated, it gives the embeddings to start from
    prompt_times: str = "tokens"  # once for each of 77 tokens, or once for each of the "parts" (published)

    # The losses.
    alpha: float = 1.0  # weight of the WAS loss
    beta: float = 0.005  # weight of the diffusion loss, which keeps embeddings understandable
    # "maps": -log of the part's own share of the softmax over all 77 tokens (the paper's A_ca);
    # "logits": K-way softmax over mean raw logits (published code).
    cross_entropy: str = "maps"
    # What the WAS loss accumulates: "tokens", the cross maps of eq. 3, or "parts", the K-way softmax of the
    # mean logits (published code).
    was_source: str = "tokens"
    # Over pixels. The paper writes the sum, but with its alpha = 1 that drowns the cross entropy.
    was_reduction: str = "mean"
    # A part weighs (all pixels / its pixels) ** class_weight in the cross entropy. With the paper's 1 a backbone
    # that is unsure sees small parts everywhere.
    class_weight_power: float = 1.0
    class_counts: str = "all"  # "foreground": all but the background's pixels, and background weighs 1 (published)
    guidance_scale: float = (
        0.0  # of the noise in the diffusion loss; 0: the conditional answer alone; published code 100
    )

    # The views that are learned from.
    channel_order: str = "rgb"  # "bgr" for embeddings learned on BGR images, as the published code's are
    encoder: str = "vae"  # the VAE's; "tiny": an AutoencoderTiny's, far cheaper, which then has to serve as well
    posterior: str = "mean"  # of the VAE while training; "sample" draws (published); at test time always the mean
    part_schedule: str = (
        "run"  # the part that a view must show: one after the other over the "run", or anew each "epoch"
    )
    flip: float = 0.5  # chance of a mirrored view
    crop: tuple[float, float] = (0.5, 1.0)  # side of the random square crop, of the whole side
    rotation: float = 30.0  # degrees, either way
    blur: tuple[float, float] = (0.0, 1.0)  # Gaussian sigma, in pixels of a 512-pixel image
    recolour_probability: float = 0.0  # chance that a part of a view gets a random mean colour; not in the paper

    # At test time.
    t_test: int = 100
    extra_timesteps: tuple[int, ...] = ()  # further timesteps, a pass each; maps are averaged over all passes
    noise_samples: int = 1  # of noise at each timestep
    flip_average: bool = False  # each pass on the mirrored latents, too
    # Cross maps. "tokens": the softmax over all 77 tokens of each head, then the mean (eq. 3); "parts": one softmax
    # over the parts of the mean logits, what cross_entropy "logits" learns. Heads of 16 channels are weak judges one
    # by one, so a small backbone wants the latter.
    readout: str = "tokens"
    threshold: float = 0.2  # a part whose cross map stays under it everywhere is left out
    drop_background: bool = False  # the threshold is for the background, too (published)
    suppress_first_part: bool = False  # the first part kept counts only where it is above its mean (published)
    rescale: bool = False  # each WAS map onto its cross map's [min, max] (published)
    patches: int = 1  # crops a side at test time; the paper takes 2 of 400 of 512 pixels for faces
    patch_side: float = 1.0  # of a crop, as a share of the side
    edge_tolerance: float = 0.0  # joint bilateral upsampling: tolerated difference of colour, 0 to 1; 0 is bilinear
    layers: Layers = field(default_factory=Layers)

    def __post_init__(self) -> None:
        _check(self.learning_rate > 0, "learning_rate", self.learning_rate, "a number above 0")
        _check(self.epochs >= 1, "epochs", self.epochs, "1 or more")
        _check(self.steps is None or self.steps >= 1, "steps", self.steps, "1 or more")
        _check(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        _check(self.steps_per_view >= 1, "steps_per_view", self.steps_per_view, "1 or more")
        _check(0 <= self.t_test < 1000, "t_test", self.t_test, "0 to 999")
        low, high = self.t_opt
        _check(0 <= low <= high < 1000, "t_opt", self.t_opt, "two timesteps LOW HIGH within 0 to 999")
        _check(self.alpha >= 0, "alpha", self.alpha, "0 or more")
        _check(self.beta >= 0, "beta", self.beta, "0 or more")
        for name, words in CHOICES.items():
            _check(getattr(self, name) in words, name, getattr(self, name), " or ".join(words))
        _check(
            self.encoder == "vae" or self.posterior == "mean",
            "posterior",
            f"{self.posterior} with encoder {self.encoder}, which has no posterior",
            "mean",
        )
        _check(
            0 <= self.class_weight_power <= 1, "class_weight_power", self.class_weight_power, "an exponent from 0 to 1"
        )
        _check(self.guidance_scale >= 0, "guidance_scale", self.guidance_scale, "0 or more")
        _check(
            all(0 <= t < 1000 for t in self.extra_timesteps),
            "extra_timesteps",
            self.extra_timesteps,
            "timesteps from 0 to 999",
        )
        _check(1 <= self.noise_samples <= 16, "noise_samples", self.noise_samples, "1 to 16")
        _check(bool(self.prompt_word.strip()), "prompt_word", self.prompt_word, "a word")
        _check(0 <= self.flip <= 1, "flip", self.flip, "a chance from 0 to 1")
        _check(0 < self.crop[0] <= self.crop[1] <= 1, "crop", self.crop, "two fractions LOW HIGH in (0, 1]")
        _check(0 <= self.rotation <= 180, "rotation", self.rotation, "0 to 180 degrees")
        _check(
            0 <= self.recolour_probability <= 1,
            "recolour_probability",
            self.recolour_probability,
            "a chance from 0 to 1",
        )
        _check(0 <= self.blur[0] <= self.blur[1], "blur", self.blur, "two sigmas LOW HIGH, 0 or more")
        self.postprocess(512)

    def postprocess(self, side: int) -> Postprocess:
        """What turns maps into scores, for a backbone of S = `side` pixels."""
        try:
            return Postprocess(side=side, **{name: getattr(self, name) for name in _POSTPROCESS})
        except ValueError as error:
            raise InputError(str(error).removeprefix("weighting: ")) from error

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
    return tuple(value) if name == "extra_timesteps" else value


_POSTPROCESS = (
    "threshold",
    "drop_background",
    "suppress_first_part",
    "rescale",
    "patches",
    "patch_side",
    "edge_tolerance",
)
