"""report.html: one file that shows how a run went, with every picture inside it, and no links to other files.

Shape suffixes: H, W image sides, S steps, L losses.
"""

from __future__ import annotations

import base64
import io
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from slime_optimize.data.annotations import Example
from slime_optimize.data.validation import compared
from slime_optimize.method.prediction import Predictor
from slime_optimize.method.run import Run
from slime_optimize.method.training import LOSSES, Learned
from slime_optimize.picture import Pixels, colour_mask, overlay
from slime_optimize.presets import PRESETS
from slime_optimize.verdict import verdict

REPORT_FILE = "report.html"
_TEMPLATE = Path(__file__).with_name("report.html.j2")
_SIDE = 320  # of a picture in the page, in pixels
_SHOWN = 12  # training images with a picture; the figures are for all
_TITLES = {"ce": "cross entropy", "was": "WAS loss", "diffusion": "diffusion loss"}
_INK, _FAINT, _BEST = "#3367d6", "#b9cdf5", "#d1462f"


def report_html(learned: Learned, run: Run, name: str, command: str = "") -> str:
    """Return the page about the segmenter called `name`, which `command` made.

    Predicts the first training image once for each snapshot; nothing else here is slow.
    """
    segmenter = learned.segmenter
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return page.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        segmenter=segmenter,
        run=run,
        name=name,
        verdict=verdict(learned, run),
        curves=_png(_curves(learned)),
        progress=_progress(learned, run),
        images=_images(learned, run),
        hidden=max(0, len(run.examples) - _SHOWN),
        ious=_ious(segmenter.metrics, segmenter.parts, segmenter.colours),
        means={kind: segmenter.metrics[kind]["mean_iou"] for kind in _measured(segmenter.metrics)},
        settings=_settings(run),
        environment=_environment(learned, run, command),
    )


def _progress(learned: Learned, run: Run) -> list[dict[str, Any]]:
    """Return the first training image as the embeddings that were kept on the way segment it."""
    first, shown = run.examples[0], []
    chosen = learned.segmenter.metrics["step"]
    for step, learned_KD in sorted({**learned.snapshots, chosen: learned.segmenter.embeddings}.items()):
        mask = learned.masks_HW[0]
        if step != chosen:
            mask = Predictor(learned.segmenter.with_embeddings(learned_KD), run.backbone).mask(first.image_HW3)
        iou = compared([first], [mask], run.parts).mean
        shown.append({"step": step, "iou": iou, "chosen": step == chosen, "src": _laid(first, mask, learned)})
    return shown


def _images(learned: Learned, run: Run) -> list[dict[str, Any]]:
    colours = learned.segmenter.colours
    pairs = list(zip(run.examples, learned.masks_HW, strict=True))[:_SHOWN]
    return [
        {
            "name": example.name,
            "iou": compared([example], [mask], run.parts).mean,
            "image": _picture(example.image_HW3),
            "truth": _picture(colour_mask(example.mask_HW, colours)),
            "prediction": _laid(example, mask, learned),
        }
        for example, mask in pairs
    ]


def _laid(example: Example, mask_HW: Pixels, learned: Learned) -> str:
    return _picture(overlay(example.image_HW3, mask_HW, learned.segmenter.colours))


def _measured(metrics: Mapping[str, Any]) -> list[str]:
    return [kind for kind in ("training", "validation") if kind in metrics]


def _ious(metrics: Mapping[str, Any], parts: Sequence[str], colours: Sequence[Any]) -> list[dict[str, Any]]:
    """Return a row for each part: its colour, and its IoU on each data, None where no image shows it."""
    return [
        {
            "part": part,
            "colour": "#{:02x}{:02x}{:02x}".format(*colour),
            "iou": {kind: metrics[kind]["iou"][part] for kind in _measured(metrics)},
        }
        for part, colour in zip(parts, colours, strict=True)
    ]


def _settings(run: Run) -> list[dict[str, Any]]:
    """Return every setting, marked where it differs from the preset."""
    defaults = PRESETS[run.preset].as_json() if run.preset in PRESETS else {}
    return [
        {
            "name": name,
            "value": _text(value),
            "preset": _text(defaults.get(name)),
            "changed": value != defaults.get(name),
        }
        for name, value in run.settings.as_json().items()
    ]


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_text(each)}" for name, each in value.items())
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "–" if value is None else str(value)


def _environment(learned: Learned, run: Run, command: str) -> dict[str, str]:
    device = run.backbone.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    libraries = {**learned.segmenter.versions, "slime-serve": version("slime-serve")}
    shown = {
        "backbone": run.backbone.id,
        "its content": run.backbone.hash,
        **({"begun from": " ".join(run.begin.record.values())} if run.begin else {}),
        "seed": str(run.seed),
        "preset": f"{run.preset} ({run.preset_from})" if run.preset_from else run.preset,
        "steps": str(run.steps),
        "time taken": f"{duration(learned.seconds)}, {learned.seconds / run.steps:.2f} s a step",
        "precision": f"{run.precision} ({run.precision_from})" if run.precision_from else run.precision,
        "device": f"{device} ({name}), {torch.get_num_threads()} of {os.cpu_count()} cores' threads",
        "python": f"{sys.version.split()[0]} on {platform.platform()}",
        "libraries": ", ".join(f"{name} {number}" for name, number in libraries.items()),
        "made": learned.segmenter.created,
    }
    return shown | ({"command": command} if command else {})


def duration(seconds: float) -> str:
    """Return a time for people, such as "4 min 10 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _curves(learned: Learned) -> Figure:
    """Return a panel for each loss, and one for validation where there was one."""
    panels = len(LOSSES) + bool(learned.measured.iou_by_step)
    figure = Figure(figsize=(3.1 * panels, 2.5), dpi=144, layout="constrained")
    places = figure.subplots(1, panels, squeeze=False)[0]
    for axes, name, losses_S in zip(places, LOSSES, learned.losses_SL.T.numpy(), strict=False):
        steps = np.arange(1, len(losses_S) + 1)
        axes.plot(steps, losses_S, color=_FAINT, linewidth=0.8)
        axes.plot(steps, _smooth(losses_S), color=_INK, linewidth=1.6)
        _label(axes, _TITLES[name])
    if learned.measured.iou_by_step:
        measured, ious = zip(*sorted(learned.measured.iou_by_step.items()), strict=True)
        places[-1].plot(measured, ious, color=_INK, marker="o", markersize=3.5, linewidth=1.6)
        places[-1].plot(learned.measured.step, learned.measured.iou_by_step[learned.measured.step], "o", color=_BEST)
        _label(places[-1], "validation, mean IoU %")
    return figure


def _label(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _smooth(losses_S: Any) -> Any:
    """Return the running mean over a twentieth of the run."""
    width = max(1, len(losses_S) // 20)
    window = np.ones(width)
    return np.convolve(losses_S, window, "same") / np.convolve(np.ones(len(losses_S)), window, "same")


def _picture(pixels_HW3: Pixels) -> str:
    image = Image.fromarray(pixels_HW3)
    scale = min(1.0, _SIDE / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    stream = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST).save(stream, "PNG")
    return _data_uri(stream.getvalue())


def _png(figure: Figure) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return _data_uri(stream.getvalue())


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
