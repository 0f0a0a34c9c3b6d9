"""The settings of an optimisation run as one frozen dataclass; presets.py holds named sets of them.

What is said of a setting stands at its field, once: its default, its help, its choices or range, and whether it may be
changed after learning. options.py makes command-line options of it. Where the paper leaves something open, the choice
is a field here, with its reason. Nothing here needs PyTorch.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeVar

from slime_image import CHANNEL_ORDERS
from slime_optimize.errors import InputError
from slime_optimize.layers import Layers
from slime_optimize.old_names import OLD_NAMES
from slime_was import Postprocess

T = TypeVar("T")
# Groups of settings: the headings of --help-all.
RUN = "how long and how fast to learn"
LOSSES = "the losses"
VIEWS = "the augmented views to learn from"
NETWORK = "how images and maps pass through the backbone, in learning and afterwards"
TEST = "segmenting with learned embeddings (evaluate and export can change these with --set)"


Check = tuple[Callable[[Any], bool], str]  # whether a value is in range, and the range in words
_ABOVE_0: Check = (lambda x: x > 0, "a number above 0")
_FROM_0: Check = (lambda x: x >= 0, "0 or more")
_FROM_1: Check = (lambda x: x >= 1, "1 or more")
_PROBABILITY: Check = (lambda x: 0 <= x <= 1, "a chance from 0 to 1")
_TIMESTEP: Check = (lambda t: 0 <= t < 1000, "0 to 999")


def setting(
    default: T, group: str, help: str, *, main: bool = False, choices: tuple[str, ...] = (), check: Check | None = None
) -> T:
    """Return a dataclass field that carries its group, its help, and its choices or range.

    `main` settings are shown by --help, the others only by --help-all.
    """
    if choices:
        check = (choices.__contains__, " or ".join(choices))
    facts = {"group": group, "help": help, "main": main, "choices": choices, "check": check}
    return field(default=default, metadata=facts)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides the learned embeddings, and the masks made from them.

    Defaults are the paper's for SD 2.1. Raises InputError, naming the field, for a value out of range.
    """

    # Decisive: ten times more or less loses half the IoU.
    learning_rate: float = setting(0.1, RUN, "learning rate of Adam", check=_ABOVE_0, main=True)
    schedule: str = setting(
        "constant", RUN, "learning rate over the run; cosine lets it fall to 0", choices=("constant", "cosine")
    )
    epochs: int = setting(200, RUN, "passes over the training images", check=_FROM_1)
    steps: int | None = setting(
        None,
        RUN,
        "optimisation steps, instead of epochs",
        check=(lambda x: x is None or x >= 1, "1 or more"),
        main=True,
    )
    batch_size: int = setting(1, RUN, "augmented views in each step", check=_FROM_1, main=True)
    # Noise and timesteps are drawn anew in every step. At 512 pixels, encoding a view is a third of a step.
    steps_per_view: int = setting(1, RUN, "steps that use the same encoded views; more save time", check=_FROM_1)
    t_opt: tuple[int, int] = setting(
        (5, 100),
        RUN,
        "timesteps, both ends included, of which each view of a step gets a random one",
        check=(lambda t: 0 <= t[0] <= t[1] < 1000, "two timesteps LOW HIGH within 0 to 999"),
    )
    prompt_word: str = setting(
        "part",
        RUN,
        "word that is repeated for the embeddings to start from",
        check=(lambda x: bool(x.strip()), "a word"),
    )
    prompt_times: str = setting(
        "tokens", RUN, "repeat it for each of 77 tokens, or for each part (published code)", choices=("tokens", "parts")
    )

    alpha: float = setting(1.0, LOSSES, "weight of the WAS loss (eq. 8)", check=_FROM_0)
    # The diffusion loss keeps embeddings where the UNet understands them.
    beta: float = setting(0.005, LOSSES, "weight of the diffusion loss (eq. 8)", check=_FROM_0)
    # "maps": -log of the part's own share of the softmax over all 77 tokens (the paper's A_ca);
    # "logits": softmax over the parts of the mean raw logits (published code).
    cross_entropy: str = setting(
        "maps", LOSSES, "cross entropy of maps over 77 tokens, or of the parts' mean logits", choices=("maps", "logits")
    )
    # "tokens": the cross maps of eq. 3; "parts": the softmax over the parts of the mean logits (published code).
    was_source: str = setting(
        "tokens", LOSSES, "what the WAS loss accumulates: maps over tokens, or over parts", choices=("tokens", "parts")
    )
    # The paper writes the sum, but with its alpha = 1 that drowns the cross entropy.
    was_reduction: str = setting("mean", LOSSES, "reduction of the WAS loss over pixels", choices=("mean", "sum"))
    # A part weighs (all pixels / its pixels) ** power. With the paper's 1, a backbone that is unsure sees small parts
    # everywhere.
    class_weight_power: float = setting(
        1.0,
        LOSSES,
        "exponent of a part's weight in the cross entropy",
        check=(lambda x: 0 <= x <= 1, "an exponent from 0 to 1"),
    )
    # "foreground": all but the background's pixels, and the background weighs 1 (published code).
    class_counts: str = setting(
        "all", LOSSES, "pixels that a part's weight is a share of", choices=("all", "foreground")
    )
    # 0 takes the conditional answer alone; the published code takes 100.
    guidance_scale: float = setting(
        0.0, LOSSES, "classifier-free guidance in the diffusion loss; 0 halves the time of a step", check=_FROM_0
    )

    channel_order: str = setting("rgb", NETWORK, "order in which the backbone gets channels", choices=CHANNEL_ORDERS)
    # A segmenter has to be served with the encoder that it was made with.
    encoder: str = setting(
        "vae", NETWORK, "encoder of images: the VAE, or the far cheaper tiny one", choices=("vae", "tiny"), main=True
    )
    # After learning it is always the mean.
    posterior: str = setting(
        "mean", VIEWS, "the VAE's posterior in learning: mean, or sample (published code)", choices=("mean", "sample")
    )
    part_schedule: str = setting(
        "run", VIEWS, "parts that views must show, in order: over the run, or in each epoch", choices=("run", "epoch")
    )
    flip: float = setting(0.5, VIEWS, "probability of a mirrored view", check=_PROBABILITY)
    crop: tuple[float, float] = setting(
        (0.5, 1.0),
        VIEWS,
        "range of the random square crop's side, as a share of the whole side",
        check=(lambda x: 0 < x[0] <= x[1] <= 1, "two fractions LOW HIGH in (0, 1]"),
    )
    rotation: float = setting(
        30.0, VIEWS, "largest rotation either way, in degrees", check=(lambda x: 0 <= x <= 180, "0 to 180 degrees")
    )
    blur: tuple[float, float] = setting(
        (0.0, 1.0),
        VIEWS,
        "range of the Gaussian blur's sigma, in pixels of a 512-pixel image",
        check=(lambda x: 0 <= x[0] <= x[1], "two sigmas LOW HIGH, 0 or more"),
    )
    # Not in the paper.
    recolour_probability: float = setting(
        0.0, VIEWS, "probability that a part of a view gets a random mean colour", check=_PROBABILITY
    )

    t_test: int = setting(100, TEST, "timestep at which images are segmented", check=_TIMESTEP)
    # Maps are averaged over all passes.
    extra_timesteps: tuple[int, ...] = setting(
        (),
        TEST,
        "further timesteps, a pass each",
        check=(lambda x: all(map(_TIMESTEP[0], x)), "timesteps from 0 to 999"),
    )
    noise_samples: int = setting(
        1, TEST, "noise samples at each timestep, a pass each", check=(lambda x: 1 <= x <= 16, "1 to 16")
    )
    flip_average: bool = setting(False, TEST, "segment the mirrored image too, and average the maps", main=True)
    # "tokens": softmax over all 77 tokens of each head, then the mean (eq. 3); "parts": one softmax over the parts of
    # the mean logits, which is what cross_entropy "logits" learns. Heads of 16 channels are weak judges one by one, so
    # that a small backbone needs "parts".
    readout: str = setting(
        "tokens", TEST, "softmax of the cross maps: over all tokens, or over the parts", choices=("tokens", "parts")
    )
    threshold: float = setting(0.2, TEST, "a part whose cross map stays under it is left out", main=True)
    drop_background: bool = setting(False, TEST, "apply the threshold to the background too (published code)")
    suppress_first_part: bool = setting(
        False, TEST, "count the first part that is kept only where it is above its mean (published code)"
    )
    rescale: bool = setting(False, TEST, "rescale each WAS map to its cross map's [min, max] (published code)")
    # The paper takes 2 crops a side, of 400 of 512 pixels, for faces.
    patches: int = setting(1, TEST, "crops along each side of the image, segmented one by one", main=True)
    patch_side: float = setting(1.0, TEST, "side of such a crop, as a share of the whole side", main=True)
    # The upsampling is joint bilateral, bilinear at 0.
    edge_tolerance: float = setting(
        0.0, TEST, "align edges with the image: difference of colour within a part, 0 to 1; 0 does not", main=True
    )
    layers: Layers = setting(Layers(), NETWORK, "attention layers, by their names in the UNet")  # noqa: RUF009 (frozen)

    def __post_init__(self) -> None:
        for each in fields(self):
            value, check = getattr(self, each.name), each.metadata["check"]
            if check and not check[0](value):
                raise InputError(f"{each.name}: got {value}, expected {check[1]}")
        if self.encoder != "vae" and self.posterior != "mean":
            raise InputError(
                f"posterior: got {self.posterior} with encoder {self.encoder}, which has no posterior, expected mean; "
                "add --posterior mean"
            )
        self.postprocess(512)

    def postprocess(self, side: int) -> Postprocess:
        """Return what turns maps into scores, for a backbone whose images have S = `side` pixels a side."""
        names = {each.name for each in fields(Postprocess)} - {"side"}
        try:
            return Postprocess(side=side, **{name: getattr(self, name) for name in names})
        except ValueError as error:
            raise InputError(str(error).partition(": ")[2]) from error

    @property
    def over_parts(self) -> bool:
        """Whether test-time cross maps are one softmax over the parts alone."""
        return self.readout == "parts"

    def total_steps(self, images: int) -> int:
        """Return the number of steps of a run on `images` training images."""
        return self.steps if self.steps is not None else -(-self.epochs * images // self.batch_size)

    def changed(self, values: Mapping[str, Any], source: str = "settings") -> Settings:
        """Return a copy with JSON-like `values` in place; InputError for names or types that do not fit."""
        known = {each.name for each in fields(self)}
        for name in values:
            if name not in known:
                raise InputError(f"{source}: unknown setting {name!r}, expected one of {', '.join(sorted(known))}")
        try:
            return replace(self, **{name: _from_json(name, value) for name, value in values.items()})
        except InputError:
            raise
        except (TypeError, KeyError, ValueError) as error:
            raise InputError(f"{source}: a value of the wrong kind ({error})") from error

    def at_test_time(self, changes: Sequence[str]) -> Settings:
        """Return a copy with `changes`, each "NAME=VALUE" as after --set, in place.

        Only settings that matter after learning can be changed. Raises InputError, in one line, for any other setting,
        and for a value that cannot be read or is out of range.
        """
        kinds, values = typing.get_type_hints(Settings), dict[str, Any]()
        for change in changes:
            name, equals, text = (word.strip() for word in change.partition("="))
            if not equals:
                raise InputError(f"--set {change}: expected NAME=VALUE, such as threshold=0.1")
            if name in OLD_NAMES:
                new = OLD_NAMES[name]
                raise InputError(f"--set {change}: {name} is now called {new}; write --set {new}={text}")
            if name not in TEST_TIME:
                why = "is part of what was learned" if name in kinds else "is no setting"
                raise InputError(f"--set {change}: {name} {why}, expected one of {', '.join(TEST_TIME)}")
            if name in values:
                raise InputError(f"--set {change}: {name} is set twice, expected each setting once")
            values[name] = _from_text(text, kinds[name], change)
        return self.changed(values, "--set")

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values; `Settings().changed(x.as_json())` gives x back."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        values["layers"] = {"cross": list(self.layers.cross), "self": list(self.layers.self_)}
        return values


TEST_TIME = tuple(each.name for each in fields(Settings) if each.metadata["group"] == TEST)


def _from_json(name: str, value: Any) -> Any:
    if name == "layers" and not isinstance(value, Layers):
        return Layers(cross=tuple(value["cross"]), self_=tuple(value["self"]))
    if name in ("t_opt", "crop", "blur"):
        low, high = value
        return (low, high)
    return tuple(value) if name == "extra_timesteps" else value


def _from_text(text: str, kind: Any, change: str) -> Any:
    """Return the value of type `kind` that `text` is; InputError, naming the `change`, if it is none."""
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.casefold()]
        if typing.get_origin(kind) is tuple:
            return tuple(int(number) for number in text.replace(",", " ").split())
        return kind(text)
    except (ValueError, KeyError):
        words = {bool: "true or false", int: "a whole number", float: "a number"}
        raise InputError(
            f"--set {change}: got {text!r}, expected {words.get(kind, 'whole numbers with commas between them')}"
        ) from None
