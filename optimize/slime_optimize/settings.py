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
from slime_optimize.errors import BackboneError, InputError
from slime_was import Postprocess

T = TypeVar("T")
# Groups of settings: the headings of --help-all.
RUN = "how long and how fast to learn"
LOSSES = "the losses"
VIEWS = "the augmented views to learn from"
NETWORK = "how images and maps pass through the backbone, in learning and afterwards"
TEST = "segmenting with learned embeddings (evaluate and export can change these with --set)"


def _blocks(level: int, attentions: tuple[int, ...], kind: str) -> tuple[str, ...]:
    return tuple(f"up_blocks.{level}.attentions.{i}.transformer_blocks.0.{kind}" for i in attentions)


@dataclass(frozen=True, kw_only=True)
class Layers:
    """The attention layers whose maps are averaged, by diffusers' names; the default is the paper's choice for SD 2.1.

    Raises InputError for an empty list, a name that occurs twice, or one of the wrong kind.
    """

    cross: tuple[str, ...] = _blocks(1, (0, 1, 2), "attn2") + _blocks(2, (0, 1), "attn2")
    self_: tuple[str, ...] = _blocks(3, (0, 1, 2), "attn1")

    def __post_init__(self) -> None:
        for role, names, ending in (("cross", self.cross, ".attn2"), ("self", self.self_, ".attn1")):
            if not names:
                raise InputError(f"{role} layers: got none, expected at least one attention layer name")
            if len(set(names)) != len(names):
                raise InputError(f"{role} layers: a layer is named twice, expected each one once")
            for name in names:
                if not name.endswith(ending):
                    raise InputError(f"{role} layer {name}: expected a name that ends in {ending}")

    def validate(self, unet: Any) -> None:
        """Raise BackboneError, naming the layers that exist, unless `unet` has every layer."""
        known = [name.removesuffix(".processor") for name in unet.attn_processors]
        for kind, wanted in (("attn2", self.cross), ("attn1", self.self_)):
            there = [name for name in known if name.endswith(kind)]
            for name in wanted:
                if name not in there:
                    raise BackboneError(f"attention layer {name}: not in this UNet; expected one of {_grouped(there)}")


def _grouped(names: Sequence[str]) -> str:
    """Return `a.attentions.[0,1].transformer_blocks.0.attn2, …`: one entry for each block of the UNet."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name in names:
        block, _, rest = name.partition(".attentions.")
        index, _, tail = rest.partition(".")
        groups.setdefault((block, tail), []).append(index)
    found = [f"{b}.attentions.[{','.join(i)}].{t}" for (b, t), i in groups.items()]
    return ", ".join(found) or "nothing (it has no attention of this kind)"


def setting(
    default: T,
    group: str,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    valid: Callable[[Any], bool] | None = None,
    expected: str = "",
    main: bool = False,
) -> T:
    """Return a dataclass field that carries its help, its choices or its range, and its group.

    `valid` says whether a value is in range, `expected` says the range in words. `main` settings are shown by --help,
    the others only by --help-all.
    """
    if choices:
        valid, expected = choices.__contains__, " or ".join(choices)
    facts = {"group": group, "help": help, "choices": choices, "valid": valid, "expected": expected, "main": main}
    return field(default=default, metadata=facts)


def _at_least(least: float) -> dict[str, Any]:
    return {"valid": lambda value: value >= least, "expected": f"{least} or more"}


def _probability() -> dict[str, Any]:
    return {"valid": lambda value: 0 <= value <= 1, "expected": "a chance from 0 to 1"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides the learned embeddings, and the masks made from them.

    Defaults are the paper's for SD 2.1. Raises InputError, naming the field, for a value out of range.
    """

    # Decisive: ten times more or less loses half the IoU.
    learning_rate: float = setting(
        0.1, RUN, "learning rate of Adam", valid=lambda x: x > 0, expected="a number above 0", main=True
    )
    schedule: str = setting(
        "constant",
        RUN,
        "learning rate over the run: the same throughout, or falling to 0 along half a cosine",
        choices=("constant", "cosine"),
    )
    epochs: int = setting(200, RUN, "passes over the training images", **_at_least(1))
    steps: int | None = setting(
        None,
        RUN,
        "optimisation steps, instead of epochs",
        valid=lambda x: x is None or x >= 1,
        expected="1 or more",
        main=True,
    )
    batch_size: int = setting(1, RUN, "augmented views in each step", **_at_least(1), main=True)
    # Noise and timesteps are drawn anew in every step.
    steps_per_view: int = setting(
        1, RUN, "steps that use the same encoded views; at 512 pixels, encoding is a third of a step", **_at_least(1)
    )
    t_opt: tuple[int, int] = setting(
        (5, 100),
        RUN,
        "timesteps LOW to HIGH, both included, of which each step draws one for each view",
        valid=lambda t: 0 <= t[0] <= t[1] < 1000,
        expected="two timesteps LOW HIGH within 0 to 999",
    )
    prompt_word: str = setting(
        "part",
        RUN,
        "word whose repetition gives the embeddings to start from",
        valid=lambda word: bool(word.strip()),
        expected="a word",
    )
    prompt_times: str = setting(
        "tokens",
        RUN,
        "how often that word is repeated: once for each of 77 tokens, or once for each part (published code)",
        choices=("tokens", "parts"),
    )

    alpha: float = setting(1.0, LOSSES, "weight of the WAS loss (eq. 8)", **_at_least(0))
    # The diffusion loss keeps embeddings where the UNet understands them.
    beta: float = setting(0.005, LOSSES, "weight of the diffusion loss (eq. 8)", **_at_least(0))
    # "maps": -log of the part's own share of the softmax over all 77 tokens (the paper's A_ca);
    # "logits": softmax over the parts of the mean raw logits.
    cross_entropy: str = setting(
        "maps",
        LOSSES,
        "what the cross entropy compares: the softmax maps over 77 tokens, or the parts' mean raw logits "
        "(published code)",
        choices=("maps", "logits"),
    )
    was_source: str = setting(
        "tokens",
        LOSSES,
        "what the WAS loss accumulates: the cross maps of eq. 3 over all tokens, or the softmax over the parts of the "
        "mean logits (published code)",
        choices=("tokens", "parts"),
    )
    # The paper writes the sum, but with its alpha = 1 that drowns the cross entropy.
    was_reduction: str = setting("mean", LOSSES, "reduction of the WAS loss over pixels", choices=("mean", "sum"))
    # With the paper's 1, a backbone that is unsure sees small parts everywhere.
    class_weight_power: float = setting(
        1.0,
        LOSSES,
        "exponent of a part's weight in the cross entropy, (all pixels / the part's pixels) ** exponent",
        valid=lambda x: 0 <= x <= 1,
        expected="an exponent from 0 to 1",
    )
    class_counts: str = setting(
        "all",
        LOSSES,
        "pixels in the numerator of that weight: all, or all but the background's, which then weighs 1 "
        "(published code)",
        choices=("all", "foreground"),
    )
    guidance_scale: float = setting(
        0.0,
        LOSSES,
        "classifier-free guidance of the noise in the diffusion loss; 0 takes the conditional answer alone and halves "
        "the time of a step (published code: 100)",
        **_at_least(0),
    )

    channel_order: str = setting(
        "rgb", NETWORK, "order in which the backbone gets an image's channels", choices=CHANNEL_ORDERS
    )
    # A segmenter has to be served with the encoder that it was made with.
    encoder: str = setting(
        "vae",
        NETWORK,
        "encoder of images: the backbone's VAE, or its tiny encoder, which is far cheaper",
        choices=("vae", "tiny"),
        main=True,
    )
    posterior: str = setting(
        "mean",
        VIEWS,
        "what is taken of the VAE's posterior in learning: its mean, or a sample (published code); later always the "
        "mean",
        choices=("mean", "sample"),
    )
    part_schedule: str = setting(
        "run",
        VIEWS,
        "the part that a view must show: one after the other over the whole run, or beginning anew in each epoch",
        choices=("run", "epoch"),
    )
    flip: float = setting(0.5, VIEWS, "probability of a mirrored view", **_probability())
    crop: tuple[float, float] = setting(
        (0.5, 1.0),
        VIEWS,
        "range of the random square crop's side, as a share of the whole side",
        valid=lambda x: 0 < x[0] <= x[1] <= 1,
        expected="two fractions LOW HIGH in (0, 1]",
    )
    rotation: float = setting(
        30.0,
        VIEWS,
        "largest rotation in either direction, in degrees",
        valid=lambda x: 0 <= x <= 180,
        expected="0 to 180 degrees",
    )
    blur: tuple[float, float] = setting(
        (0.0, 1.0),
        VIEWS,
        "range of the Gaussian blur's sigma, in pixels of a 512-pixel image",
        valid=lambda x: 0 <= x[0] <= x[1],
        expected="two sigmas LOW HIGH, 0 or more",
    )
    # Not in the paper.
    recolour_probability: float = setting(
        0.0, VIEWS, "probability that a part of a view gets a random mean colour", **_probability()
    )

    t_test: int = setting(
        100, TEST, "timestep at which images are segmented", valid=lambda t: 0 <= t < 1000, expected="0 to 999"
    )
    extra_timesteps: tuple[int, ...] = setting(
        (),
        TEST,
        "further timesteps, one UNet pass each; maps are averaged over all passes",
        valid=lambda ts: all(0 <= t < 1000 for t in ts),
        expected="timesteps from 0 to 999",
    )
    noise_samples: int = setting(
        1, TEST, "noise samples at each timestep, one pass each", valid=lambda n: 1 <= n <= 16, expected="1 to 16"
    )
    flip_average: bool = setting(False, TEST, "segment the mirrored image too, and average the maps", main=True)
    # "parts" is what cross_entropy "logits" learns. Heads of 16 channels are weak judges one by one, so that a small
    # backbone needs it.
    readout: str = setting(
        "tokens",
        TEST,
        "cross maps: softmax over all 77 tokens of each head, then the mean (eq. 3), or one softmax over the parts of "
        "the mean logits",
        choices=("tokens", "parts"),
    )
    threshold: float = setting(0.2, TEST, "a part whose cross map stays under it everywhere is left out", main=True)
    drop_background: bool = setting(False, TEST, "apply the threshold to the background too (published code)")
    suppress_first_part: bool = setting(
        False, TEST, "count the first part that is kept only where it is above its mean (published code)"
    )
    rescale: bool = setting(False, TEST, "rescale each WAS map to its cross map's [min, max] (published code)")
    # The paper takes 2 crops a side, of 400 of 512 pixels, for faces.
    patches: int = setting(1, TEST, "crops along each side of the image, segmented one by one", main=True)
    patch_side: float = setting(1.0, TEST, "side of such a crop, as a share of the whole side", main=True)
    edge_tolerance: float = setting(
        0.0,
        TEST,
        "joint bilateral upsampling: the difference of colour, 0 to 1, that is tolerated within a part; 0 upsamples "
        "bilinearly",
        main=True,
    )
    layers: Layers = setting(Layers(), NETWORK, "attention layers, by the names they have in the UNet")  # noqa: RUF009 (frozen)

    def __post_init__(self) -> None:
        for each in fields(self):
            value, valid = getattr(self, each.name), each.metadata["valid"]
            if valid and not valid(value):
                raise InputError(f"{each.name}: got {value}, expected {each.metadata['expected']}")
        if self.encoder != "vae" and self.posterior != "mean":
            raise InputError(
                f"posterior: got {self.posterior} with encoder {self.encoder}, which has no posterior, expected mean"
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
# Names and values of settings in files that were written before they were renamed.
OLD_NAMES = {
    "guide": "edge_tolerance",
    "guidance": "guidance_scale",
    "more_t": "extra_timesteps",
    "draws": "noise_samples",
    "mirrored": "flip_average",
    "suppress": "suppress_first_part",
    "turns": "part_schedule",
    "view_uses": "steps_per_view",
    "recolour": "recolour_probability",
    "class_weight": "class_weight_power",
}
OLD_VALUES = {("encoder", "kl"): "vae"}


def in_current_words(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored `values` with old names and values of settings in today's words; everything else as it is."""
    renamed = {OLD_NAMES.get(name, name): value for name, value in values.items()}
    return {
        name: OLD_VALUES.get((name, value), value) if isinstance(value, str) else value
        for name, value in renamed.items()
    }


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
