"""Earlier names and values of settings: files that have them are read, options that have them are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slime_optimize.errors import InputError

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
    """Return stored `values` with old names and values of settings in today's words; everything else as it is.

    Raises InputError for a setting that is there under both names, and for anything but a mapping.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"settings: got {type(values).__name__}, expected a JSON object of settings by name")
    for old, new in OLD_NAMES.items():
        if old in values and new in values:
            raise InputError(f"settings: got {old} and {new}, which are one setting, expected {new} alone")
    renamed = {OLD_NAMES.get(name, name): value for name, value in values.items()}
    return {
        name: OLD_VALUES.get((name, value), value) if isinstance(value, str) else value
        for name, value in renamed.items()
    }
