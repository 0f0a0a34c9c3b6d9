"""The page of benchmarks.quality.video, from the kept figures alone: tables, goals, a plot, and one clip as .webp."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from benchmarks.common import keeping
from benchmarks.common.figures import Goal
from PIL import Image

from slime_optimize.picture import overlay

Masks = npt.NDArray[np.uint8]  # (T, H, W)
Colours = tuple[tuple[int, int, int], ...]
SINGLE, MEAN, FLOW, LIVE, TRUTH = "single frames", "mean", "flow", "flow, decided at once", "the truth"
SINGLE_REUSED, FLOW_REUSED = "single frames, still ones reused", "flow, still ones reused"
MARGIN = 0.3  # points of mean IoU on the clips for choosing, so that it is not under single frames' on others either
MEASURES = {
    "miou": "mean IoU, %",
    "j": "J, %",
    "f": "F, %",
    "vc8": "VC 8, %",
    "vc16": "VC 16, %",
    "tc": "TC, %",
    "flicker": "flicker",
    "false_flicker": "flicker the truth has not",
}
SERVED_GOALS = {
    "none": Goal(label="frames a second of a clip, of single images through the server", relation="≥", wanted=0.9),
    "flow": Goal(label="the same with `--smooth flow`", relation="≥", wanted=0.75),
}
_TRIED = ("share", "weight", "rarity", "least")
_READ = {MEAN: (_TRIED[0], _TRIED[-1]), FLOW: _TRIED[1:]}
GOALS = {
    "miou": Goal(label="mean IoU of `flow`, points above single frames", relation="≥", wanted=0, form=".2f"),
    "flicker": Goal(label="flicker of `flow`, of single frames'", relation="≤", wanted=1 / 3, form=".2f"),
    "false_flicker": Goal(label="the same, without the truth's own", relation="≤", wanted=1 / 3, form=".2f"),
    "tc": Goal(label="TC of `flow`, of the way from single frames to the truth", relation="≥", wanted=0.5, form=".2f"),
    "vc16": Goal(label="VC 16, the same", relation="≥", wanted=0.5, form=".2f"),
    "reused": Goal(label="points of mean IoU that `skip_still` costs single frames", relation="≤", wanted=0.2),
}


def animate(path: Path, images_THW3: Masks, colours: Colours, columns: Sequence[Masks]) -> None:
    """Write a clip beside its masks of each kind as an animated picture, at 12 frames a second."""
    shown = [
        np.concatenate([image, *(overlay(image, masks[index], colours, 0.75) for masks in columns)], 1)
        for index, image in enumerate(images_THW3)
    ]
    enlarged = [Image.fromarray(each).resize((192 * (1 + len(columns)), 192)) for each in shown]
    first, *others = enlarged
    path.parent.mkdir(parents=True, exist_ok=True)
    first.save(path, save_all=True, append_images=others, duration=83, loop=0, quality=60, method=6)


def page(result: Mapping[str, Any], picture: str) -> str:
    """Return the document."""
    rows, names = result["rows"], list(MEASURES.values())
    timed = [
        [name, *_cells(row["mean"]), f"{row['ms']:.1f}" if name in (MEAN, FLOW, LIVE) else ""]
        for name, row in rows.items()
    ]
    by_kind = [
        [kind, name, *_cells(row["kinds"][kind])]
        for kind in rows[SINGLE]["kinds"]
        for name, row in rows.items()
        if name != TRUTH
    ]
    tried = [
        [row["way"], *(row[name] if name in _READ.get(row["way"], ()) else "" for name in _TRIED), *_cells(row)]
        for row in result["tried"]
    ]
    tables = {
        "rows": keeping.table(["clips for testing", *names, "ms a frame"], timed, True),
        "goals": keeping.table(["goal", "wanted", "measured", ""], _goals(result)),
        "kinds": keeping.table(["class", "masks", *names], by_kind),
        "tried": keeping.table(
            ["clips for choosing", *_TRIED, *(MEASURES[name] for name in MEASURES if name in result["tried"][0])], tried
        ),
    }
    return keeping.render("quality/video.md.j2", result=result, picture=picture, tables=tables, margin=MARGIN)


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Draw each measure by way, the mean over the classes as a bar and each class as a point."""
    shown = ("miou", "vc16", "tc", "flicker")
    with keeping.drawn(path, 1, len(shown), (11, 3.2)) as panels:
        for panel, name in zip(panels[0], shown, strict=True):
            ways = [way for way in (SINGLE, MEAN, FLOW, LIVE, TRUTH) if (way, name) != (TRUTH, "miou")]
            panel.bar(ways, [result["rows"][way]["mean"][name] for way in ways], color="#9bb7d4")
            for kind, marker in zip(result["rows"][SINGLE]["kinds"], "os^", strict=False):
                panel.plot(ways, [result["rows"][way]["kinds"][kind][name] for way in ways], f"k{marker}", label=kind)
            panel.set_title(MEASURES[name] if name != "flicker" else "flicker, of 1,000 pixels a frame", fontsize=9)
            panel.set_xticks(range(len(ways)), [way.replace(", ", ",\n") for way in ways], rotation=45, fontsize=8)
        panels[0][0].legend(fontsize=8)


def _goals(result: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    single, flow, truth = (result["rows"][name]["mean"] for name in (SINGLE, FLOW, TRUTH))
    values = {
        "miou": flow["miou"] - single["miou"],
        "reused": single["miou"] - result["rows"][SINGLE_REUSED]["mean"]["miou"],
        **{name: flow[name] / max(single[name], 1e-9) for name in ("flicker", "false_flicker")},
        **{name: (flow[name] - single[name]) / max(truth[name] - single[name], 1e-9) for name in ("tc", "vc16")},
    }
    ratios = (result["served"] or {}).get("ratios", {})
    return [
        *(goal.row(values[name]) for name, goal in GOALS.items()),
        *(goal.row(ratios.get(name)) for name, goal in SERVED_GOALS.items()),
    ]


def _cells(figures: Mapping[str, float]) -> list[str]:
    return [f"{figures[name]:.2f}" for name in MEASURES if name in figures]
