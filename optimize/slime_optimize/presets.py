"""Named sets of settings: what the paper says, what its published code computes, and what scores highest.

A backbone's folder may hold `slime.json`: settings that suit it, under "every" for all presets, or
under the name of one.
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
_SOURCE = "the backbone's slime.json"


def preset(name: str, recommended: Mapping[str, Any] | None = None) -> Settings:
    """Return the named preset, changed by what the backbone itself recommends."""
    if name not in PRESETS:
        raise InputError(f"preset {name!r}: unknown, expected one of {', '.join(sorted(PRESETS))}")
    given = dict(recommended or {})
    for key in given:
        if key not in ("every", *PRESETS):
            raise InputError(f"{_SOURCE}: got {key!r}, expected settings under every, {', '.join(sorted(PRESETS))}")
    settings = PRESETS[name]
    for key in ("every", name):
        settings = settings.changed(in_current_words(given.get(key, {})), _SOURCE)
    return settings
