"""Command-line options for every field of Settings, for the entry scripts that let people change them."""

from __future__ import annotations

import argparse
import types
import typing
from dataclasses import fields
from typing import Any

from slime_optimize.method.layers import Layers
from slime_optimize.presets import PRESETS
from slime_optimize.settings import CHOICES, Settings

HELP: dict[str, str] = {
    "learning_rate": "of Adam",
    "schedule": "of the learning rate over the run",
    "epochs": "passes over the training images",
    "steps": "optimisation steps, instead of epochs",
    "batch_size": "views per step",
    "steps_per_view": "steps that take the same encoded views; at 512 pixels encoding is a third of a step",
    "t_opt": "range of timesteps drawn from while optimising",
    "prompt_word": "repeated, it gives the embeddings to start from",
    "prompt_times": "once for each token, or once for each part",
    "alpha": "weight of the WAS loss",
    "beta": "weight of the diffusion loss",
    "cross_entropy": "on the 77-way softmax maps, or on the parts' mean raw logits",
    "was_source": "what the WAS loss accumulates: the maps over all tokens, or over the parts",
    "was_reduction": "of the WAS loss over pixels",
    "class_weight_power": "exponent of a part's weight in the cross entropy",
    "class_counts": "pixels that a part's weight is a share of",
    "guidance_scale": "of the noise in the diffusion loss; 0 is none, and half as long a step",
    "channel_order": "in which the backbone gets an image's channels",
    "encoder": "of images: the backbone's VAE (vae), or its tiny encoder, while optimising and when served",
    "posterior": "of the VAE while optimising",
    "part_schedule": "of the parts that a view must show: over the run, or anew in each epoch",
    "flip": "chance of a mirrored view",
    "crop": "range of the random crop's side, as a share of the whole side",
    "rotation": "largest rotation, in degrees",
    "blur": "range of the Gaussian blur's sigma, in pixels of a 512-pixel image",
    "recolour_probability": "chance that a part of a view gets a random mean colour",
    "t_test": "timestep at which images are segmented",
    "extra_timesteps": "further timesteps at test time, a pass each",
    "noise_samples": "of noise at each timestep at test time",
    "flip_average": "segment the mirrored image too, and average",
    "readout": "softmax of the cross maps at test time, over all tokens or the parts",
    "threshold": "a part whose cross map stays under it is left out",
    "drop_background": "the threshold is for the background, too",
    "suppress_first_part": "the first part kept counts only where it is above its mean",
    "rescale": "each WAS map onto its cross map's range",
    "patches": "crops a side at test time",
    "patch_side": "side of such a crop, as a share of the whole side",
    "edge_tolerance": "joint bilateral upsampling: tolerated difference of colour, 0 to 1; 0 is bilinear",
    "layers": "attention layers by the name they have in the UNet",
}


def add_settings(parser: argparse.ArgumentParser, preset: str = "paper") -> None:
    """An option for each field; one that is not given leaves nothing in the namespace. Help tells `preset`'s values."""
    group = parser.add_argument_group("settings, in place of the preset's and the backbone's own")
    kinds, usual = typing.get_type_hints(Settings), PRESETS[preset]
    for field in fields(Settings):
        told = HELP.get(field.name, field.name.replace("_", " "))
        if kinds[field.name] is Layers:
            for role in ("cross", "self"):
                text = f"{role}-{told}"
                group.add_argument(f"--{role}-layers", nargs="+", metavar="NAME", default=argparse.SUPPRESS, help=text)
            continue
        group.add_argument(
            f"--{field.name.replace('_', '-')}",
            default=argparse.SUPPRESS,
            help=f"{told} (preset {preset}: {_shown(getattr(usual, field.name))})",
            **_form(field.name, kinds[field.name]),
        )


def chosen(arguments: argparse.Namespace, base: Settings) -> Settings:
    """`base` with the options that were given in place. Raises InputError for values that do not fit."""
    given = vars(arguments)
    changes = {field.name: given[field.name] for field in fields(Settings) if field.name in given}
    if {"cross_layers", "self_layers"} & given.keys():
        cross, self_ = base.layers.cross, base.layers.self_
        changes["layers"] = {"cross": given.get("cross_layers", cross), "self": given.get("self_layers", self_)}
    return base.changed(changes)


def _shown(value: Any) -> str:
    words = " ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)
    return words.replace("%", "%%")


def _form(name: str, kind: Any) -> dict[str, Any]:
    """argparse's words for a field of this type: int, float, str, bool, a pair, several, or a choice."""
    if isinstance(kind, types.UnionType):
        (kind,) = [each for each in typing.get_args(kind) if each is not type(None)]
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    inner = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return {"choices": inner}
    if inner and inner[-1] is Ellipsis:
        return {"type": inner[0], "nargs": "*"}
    if inner:
        return {"type": inner[0], "nargs": len(inner), "metavar": ("LOW", "HIGH") if len(inner) == 2 else None}
    return {"type": kind, "choices": CHOICES.get(name)}
