"""Named sets of settings: what the paper says, what its published code computes, and what scores highest.

A backbone's folder may hold `slime.json`: under "preset" the name of the one to take where nobody chooses, and settings
that suit the backbone, under "every" for all presets, or under the name of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slime_optimize.errors import InputError
from slime_optimize.old_names import in_current_words
from slime_optimize.settings import Settings

# The equations, but for the mean over pixels in eq. 7 (Settings.was_reduction says why).
PAPER = Settings()
# What the published code computes; tests/reference compares it with recordings of that code.
REFERENCE = PAPER.changed(
    {
        "cross_entropy": "logits",
        "was_source": "parts",
        "prompt_times": "parts",
        "class_counts": "foreground",
        "guidance_scale": 100.0,
        "channel_order": "bgr",
        "posterior": "sample",
        "part_schedule": "epoch",
        "drop_background": True,
        "suppress_first_part": True,
        "rescale": True,
    }
)
# What scored highest on PartScenes' validation images; docs/results.md has the ablation.
BEST = PAPER.changed(
    {
        "cross_entropy": "logits",
        "was_source": "parts",
        "readout": "parts",
        "batch_size": 4,
        "recolour_probability": 0.9,
        "threshold": 0.0,
        "rescale": True,
        "edge_tolerance": 0.1,
    }
)

PRESETS: dict[str, Settings] = {"paper": PAPER, "reference": REFERENCE, "best": BEST}
# The only one whose figures on photographs anybody has published.
FALLBACK = "reference"
_SOURCE = "the backbone's slime.json"
_DEFAULT = "preset"  # the key of slime.json


def chosen_preset(given: str | None, recommended: Mapping[str, Any]) -> tuple[str, str]:
    """Return the preset's name and, in words, where it came from: `given`, else the backbone's own, else FALLBACK."""
    if given is not None:
        return given, "--preset"
    if _DEFAULT in recommended:
        name = recommended[_DEFAULT]
        if name not in list(PRESETS):
            raise InputError(f"{_SOURCE}: got preset {name!r}, expected one of {', '.join(sorted(PRESETS))}")
        return name, _SOURCE
    return FALLBACK, "the default, because the backbone names none"


def preset(name: str, recommended: Mapping[str, Any] | None = None) -> Settings:
    """Return the named preset, changed by what the backbone itself recommends."""
    if name not in PRESETS:
        raise InputError(f"preset {name!r}: unknown, expected one of {', '.join(sorted(PRESETS))}")
    given = {key: value for key, value in (recommended or {}).items() if key != _DEFAULT}
    for key in given:
        if key not in ("every", *PRESETS):
            raise InputError(f"{_SOURCE}: got {key!r}, expected settings under every, {', '.join(sorted(PRESETS))}")
    settings = PRESETS[name]
    for key in ("every", name):
        settings = settings.changed(in_current_words(given.get(key, {})), _SOURCE)
    return settings
