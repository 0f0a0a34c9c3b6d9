"""What benchmarks.optimize measured, as a table and as docs/optimise-speed.md. Knows only the figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Result = Mapping[str, Any]

_ROWS = {
    "published": "published form",
    "guided": "ours, the same guided loss",
    "plain": "ours, the paper's plain loss",
    "guided_reused": "ours, guided, each view in three steps",
    "plain_reused": "ours, plain, each view in three steps",
}
_SHAPES = {
    "embedded": "The embedded backbone",
    "sd21": "SD-2.1-base's shapes",
    "sd15": "SD-1.5's shapes",
}
# Shape, ratio: at least.
WANTED = {
    ("sd21", "guided"): 1.8,
    ("sd21", "plain"): 2.7,
    ("sd21", "guided_reused"): 1.8,
    ("sd21", "plain_reused"): 2.7,
    ("sd21", "memory"): 2.0,
}

_ABOUT = """# How long a training step takes

Written by `make speed`, which runs `python -m benchmarks.optimize` for each shape: a step in the form of the method's
published code against ours, on the same weights and the same machine. Each side is a process that takes one step when
told, in turn, so that they share what else the machine does; peak memory is of the process.

**The published form**: a batch of two, unconditional and conditional, with the gradient through both; every attention
written out, its scores and probabilities held for the backward pass; raw scores of five cross- and three
self-attention layers turned into averaged maps; the WAS map as a product of K x N x N elements; the image encoded at
each step. Weights are frozen. The further test pass that it makes in each step to log an IoU is left out, and so is
making the view.

**Ours**: one pass with gradient, and for the guided loss one without; attention that is computed again in the backward
pass, so that no N x N map is ever there, WAS included. Making a view for each step and encoding it is counted, ahead in
batches where images are small; one column tells how it is without, on latents encoded before. With the setting
`steps_per_view` (`--steps-per-view 3`) three steps, each with noise and timesteps, share an encoded view: the last two
rows, with the one encoding in their mean. The guided loss and its gradient equal the published form's (within 1e-5 in
float64: a test).
"""


def table(result: Result) -> str:
    """Markdown: a line for each row, the ratios, and what they were measured on."""
    rows, ratios = result["rows"], result["ratios"]
    lines = [
        f"| {result['pixels']} px, {result['parts']} parts | ms a step | least to most | of it encoding | peak memory "
        "| times faster | on latents encoded before | times smaller |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in filter(rows.__contains__, _ROWS):  # a shape that was measured with fewer ways shows fewer
        row, told = rows[name], _ROWS[name]
        encoded = ratios.get(f"{name}_encoded", "")
        than = ("1", "", "1") if name == "published" else (ratios[name], encoded, ratios["memory"])
        lines.append(
            f"| {told} | {row['ms']:.0f} | {row['least_ms']:.0f} to {row['most_ms']:.0f} | {row['encode_ms']:.0f} "
            f"| {row['peak_gb']:.2f} GB | {' | '.join(map(str, than))} |"
        )
    return "\n".join([*lines, "", *_wanted(result), _measured_on(result)])


def page(results: Mapping[str, Result]) -> str:
    """The whole document."""
    chapters = [f"## {_SHAPES.get(shape, shape)}\n\n{table(result)}" for shape, result in results.items()]
    return "\n".join([_ABOUT, "\n\n".join(chapters), ""])


def _wanted(result: Result) -> list[str]:
    told = [
        f"{ratio} at least {least}: {'reached' if result['ratios'][ratio] >= least else 'not reached'}"
        for (shape, ratio), least in WANTED.items()
        if shape == result["shape"] and ratio in result["ratios"]
    ]
    return [f"Wanted: {', '.join(told)}.", ""] if told else []


def _measured_on(result: Result) -> str:
    machine, notes = result["machine"], "; ".join(result["notes"])
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version != "None")
    where = machine["cpu"] if machine["device"] == "cpu" else machine["device"]
    return (
        f"{result['steps']} steps of each after one to warm up; encoding is a mean, the rest of a step a median. "
        f"All of ours are one process. {notes[:1].upper()}{notes[1:]}. "
        f"On {where}, {machine['threads']} threads; {versions}."
    )
