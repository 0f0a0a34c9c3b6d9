"""The model card's pictures: how the training went, what the model paints, what its VAE keeps."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from slime_optimize.files import whole

Images = NDArray[np.uint8]
BINS = 200  # of the smoothed curve
COLUMNS = 4
matplotlib.rcParams["svg.hashsalt"] = "slime"


def loss_picture(history: Sequence[dict[str, float]], path: Path) -> None:
    """Draw two panels over the steps: the denoising loss, and how many tokens the watched attention layers look at."""
    figure = Figure(figsize=(8, 6.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    steps, losses = smooth([h["step"] for h in history], [h["loss"] for h in history])
    above.plot(steps, losses, color="#1f5fa8")
    above.set(ylabel="denoising loss", title="Training of the embedded backbone", yscale="log")
    for name in watched(history):
        seen = [(h["step"], h[name]) for h in history if name in h]
        below.plot(*zip(*seen, strict=True), marker=".", label=name)
    below.set(ylabel="effective tokens", xlabel="step", yscale="log")
    if watched(history):
        title = "attn1: self-attention, of 1024 tokens; attn2: cross-attention, of 77"
        figure.legend(title=title, fontsize="small", loc="outside lower center", ncols=3)
    for panel in (above, below):
        panel.grid(alpha=0.3, which="both")
    _save(figure, path)


def watched(history: Sequence[dict[str, float]]) -> list[str]:
    """Return the attention layers that the history has figures of."""
    return sorted({key for entry in history for key in entry if key.startswith("attn")})


def smooth(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return means over at most BINS equal stretches of the history."""
    pieces = min(BINS, len(steps))
    if pieces == 0:
        return [], []
    means = [[float(np.mean(piece)) for piece in np.array_split(np.asarray(of), pieces)] for of in (steps, values)]
    return means[0], means[1]


def samples_picture(images: Images, prompts: Sequence[str], path: Path) -> None:
    """Draw a grid of (B,S,S,3) images with their prompts under them."""
    rows = -(-len(images) // COLUMNS)
    figure = Figure(figsize=(2.6 * COLUMNS, 3.3 * rows), layout="constrained")
    for place, image, prompt in zip(_places(figure, rows, COLUMNS), images, prompts, strict=False):
        place.imshow(image)
        place.set_title(textwrap.fill(prompt, 34), fontsize=8, y=-0.06, va="top")
    _save(figure, path)


def reconstructions_picture(originals: Images, rebuilt: Images, path: Path) -> None:
    """Draw originals above what the VAE makes of them."""
    figure = Figure(figsize=(1.9 * len(originals), 4), layout="constrained")
    for place, image in zip(_places(figure, 2, len(originals)), [*originals, *rebuilt], strict=True):
        place.imshow(image)
    figure.suptitle("above: validation scenes, below: through the VAE and back", fontsize=9)
    _save(figure, path)


def _places(figure: Figure, rows: int, columns: int) -> list[matplotlib.axes.Axes]:
    places: list[matplotlib.axes.Axes] = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for place in places:
        place.set_axis_off()
    return places


def _save(figure: Figure, path: Path) -> None:
    """Write the file, whole or not at all, without the date that would make every file differ."""
    with whole(path) as waiting:
        figure.savefig(waiting, format="png", dpi=100, metadata={"Software": None})
