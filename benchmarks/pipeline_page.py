"""What benchmarks.pipeline measured, as tables, as docs/performance.md and as a plot. Knows only the figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.pipeline_figures import flatness

Result = Mapping[str, Any]

NAMES = {
    "published": "published form, PyTorch",
    "torch": "ours, PyTorch",
    "averaged": "ONNX Runtime, averaged maps",
    "weighted": "ONNX Runtime, weighted maps",
    "weighted_cpu": "… weighted, rewritten for CPUs",
    "int8": "… weighted, int8 UNet",
    "tiny": "… weighted, tiny encoder",
    "int8_tiny": "… weighted, int8 UNet, tiny encoder",
}
STAGES = {
    "fit": "decode, fit",
    "encode": "encoder",
    "unet": "UNet, maps",
    "postprocess": "postprocess",
    "mask": "enlarge, argmax",
}
EXACT = ("averaged", "weighted", "weighted_cpu")
_SHAPES = {
    "embedded": "The embedded backbone",
    "sd21": "SD-2.1-base's shapes",
    "sd15": "SD-1.5's shapes",
}
_SD = {
    "averaged": (">=", 3.0),
    "weighted": (">=", 3.0),
    "weighted_cpu": (">=", 3.0),
    "memory_weighted": ("<=", 0.65),
    "memory_weighted_cpu": ("<=", 0.65),
    "memory_averaged": ("<=", 0.85),
    "weighted_to_averaged": (">=", 1.0),
    "int8_unet": (">=", 1.8),
    "int8_share": (">=", 0.75),
    "tiny_encoder": (">=", 5.0),
    "int8_tiny": (">=", 6.0),
}
# By shape: what is wanted of each ratio.
WANTED = {"sd21": _SD, "embedded": {"averaged": (">=", 3.0), "weighted": (">=", 3.0)}}
AGREE = 0.999
FLAT = 0.05
LOST = 1.0  # points of mean IoU

_ABOUT = """# From bytes to a mask

Written by `python -m benchmarks.pipeline`; do not edit. One image, from its JPEG bytes to the mask at its own size.
Each variant is a process of its own that holds its models and segments when told, in turn with the others, which wait
at a pipe; where they do not fit in memory together each is started for its turn, in every round, and warmed up by two
images. Weights, embeddings and images are the same for all. Peak memory is the largest resident set of the process's
life, loading included, at batch 1. GMAC: thousand million multiply-accumulates of one image. The machine's peak is the
fastest fp32 product of two 3072 x 3072 matrices in the same run.

**The published form** is written after the method's published code, as fast as that is: fp32 PyTorch; the VAE's
posterior sampled; a batch of two, unconditional and conditional, through the whole UNet; every attention written out,
scores of the chosen layers kept for all heads of both halves, then averaged; a product of N x N elements for each
part. It segments one image at a time. Its noise is drawn anew for each image, so that its masks differ from ours.
"""
_COLUMNS = ("peak memory", "GMAC", "of the machine's peak", "times faster")
_TRITON = """The real server on this machine, asked over loopback by `slime_client`, its networks run by this project's
stand-in for NVIDIA's ONNX Runtime backend. Between the models tensors travel through shared memory: SELF, N x N, of
averaged maps."""
_PLOT = "![Milliseconds by stage](performance.png)\n"


def table(result: Result) -> str:
    """Markdown: a line for each variant, its stages, the ratios, and what they were measured on."""
    return "\n".join([*_variants(result), "", *_stages(result), "", *_told(result), _measured_on(result)])


def page(results: Mapping[str, Result]) -> str:
    """The whole document."""
    chapters = [_chapter(shape, result) for shape, result in results.items()]
    return "\n".join([_ABOUT, _PLOT, "\n\n".join(chapters), ""])


def _chapter(shape: str, result: Result) -> str:
    tables = [table(result)] if "rows" in result else []
    if result.get("growth"):
        tables += ["### How the cost grows", *_growth(result)]
    tables += [_accuracy(result["accuracy"])] if result.get("accuracy") else []
    tables += [_triton(result["triton"])] if result.get("triton") else []
    tables += [_sessions(result["sessions"])] if result.get("sessions") else []
    return "\n\n".join([f"## {_SHAPES.get(shape, shape)}", *tables])


def _variants(result: Result) -> list[str]:
    sizes = sorted({int(size) for row in result["rows"].values() for size in row["images_per_second"]})
    heads = [f"images/s at batch {size}" for size in sizes]
    first = f"{result['pixels']} px, {result['parts']} parts"
    lines = _head(
        [first, "ms", "least to most", *heads, "peak memory", "GMAC", "of the machine's peak", "times faster"]
    )
    for name, row in result["rows"].items():
        rates = [row["images_per_second"].get(str(size)) for size in sizes]
        faster = result["ratios"].get(name, 1 if name == "published" else None)
        cells = [
            NAMES[name],
            f"{row['ms']:.0f}",
            f"{row['least_ms']:.0f} to {row['most_ms']:.0f}",
            *("" if rate is None else f"{rate:.2f}" for rate in rates),
            f"{row['peak_gb']:.2f} GB",
            f"{row['gmac']:.1f}",
            f"{100 * row['share_of_product']:.0f} %",
            "" if faster is None else f"{faster:.2f}",
        ]
        lines.append(_line(cells))
    return [*lines, *(_line([NAMES[name], f"not available: {why}"]) for name, why in result["missing"].items())]


def _stages(result: Result) -> list[str]:
    lines = _head(["ms of each stage", *STAGES.values()])
    for name, row in result["rows"].items():
        lines.append(_line([NAMES[name], *(f"{row['stages_ms'][stage]:.1f}" for stage in STAGES)]))
    return lines


def _told(result: Result) -> list[str]:
    told = [
        f"{name} {found:g} (wanted {sign} {bound:g}): {word}" for name, found, sign, bound, word in verdicts(result)
    ]
    agreed = ", ".join(f"{NAMES[name]} {100 * share:.3f} %" for name, share in result["agreement"].items())
    return [
        *([f"Ratios: {'; '.join(told)}.", ""] if told else []),
        *([f"Pixels on which the masks are those of our PyTorch: {agreed}.", ""] if agreed else []),
    ]


def verdicts(result: Result) -> list[tuple[str, float, str, float, str]]:
    """(ratio, found, sign, bound, "reached" or "not reached") of everything wanted that was measured."""
    dearer = flatness(result.get("growth", {}).get("parts", {}))
    found = {**result["ratios"], **{f"24_parts_{name}": more for name, more in dearer.items()}}
    found |= {f"agreement_{name}": share for name, share in result["agreement"].items()}
    found |= _int8_share(result)
    wanted = dict(WANTED.get(result["shape"], {}))
    for name in EXACT:
        wanted |= {f"24_parts_{name}": ("<=", FLAT), f"agreement_{name}": (">=", AGREE)}
    return [
        (name, found[name], sign, bound, "reached" if _holds(found[name], sign, bound) else "not reached")
        for name, (sign, bound) in wanted.items()
        if name in found
    ]


def _int8_share(result: Result) -> dict[str, float]:
    """Of the int8 UNet's multiply-accumulates."""
    model = result.get("models", {}).get(f"int8-{result['parts']}", {})
    return (
        {"int8_share": round(model["macs_by_precision"].get("int8", 0) / model["macs"], 3)} if "macs" in model else {}
    )


def _holds(found: float, sign: str, bound: float) -> bool:
    return found >= bound if sign == ">=" else found <= bound


def _growth(result: Result) -> list[str]:
    grown = result["growth"]
    return [_by(grown["parts"], "parts"), _by(grown["sides"], "px of the image's side")]


def _by(figures: Mapping[str, float], what: str) -> str:
    """A table of `NAME-NUMBER` -> milliseconds, names by numbers."""
    pairs = [key.rpartition("-") for key in figures]
    names = list(dict.fromkeys(name for name, _, _ in pairs))
    numbers = sorted({int(number) for _, _, number in pairs})
    lines = _head([f"ms by {what}", *map(str, numbers)])
    for name in names:
        lines.append(_line([NAMES[name], *(f"{figures[f'{name}-{number}']:.0f}" for number in numbers)]))
    return "\n".join(lines)


def _accuracy(accuracy: Mapping[str, Any]) -> str:
    kinds = list(next(iter(accuracy["miou"].values())))
    lines = _head([f"mean IoU, {accuracy['images']} test images", *kinds])
    for variant, of in accuracy["miou"].items():
        lines.append(_line([NAMES[variant], *(f"{of[kind]:.2f}" for kind in kinds)]))
    worst = {variant: max(of.values()) for variant, of in accuracy["lost"].items() if variant not in EXACT}
    told = ", ".join(
        f"{NAMES[variant]} {most:.2f} ({'reached' if most <= LOST else 'not reached'})"
        for variant, most in worst.items()
    )
    note = f"Most that a class loses, in points (wanted <= {LOST:g}): {told}." if told else ""
    return "\n".join(["### Accuracy\n", *lines, "", f"{note} PartScenes, preset `best`, seeds {accuracy['seeds']}."])


def _triton(triton: Mapping[str, Any]) -> str:
    lines = _head(["ms, whole request", "over gRPC", "in one process", "added by the server"])
    for name, row in triton.items():
        figures = (row["served_ms"], row["process_ms"], row["served_ms"] - row["process_ms"])
        lines.append(_line([NAMES[name], *(f"{each:.1f}" for each in figures)]))
    return "\n".join(["### What Triton adds\n", *lines, "", _TRITON])


def _sessions(sessions: Mapping[str, Any]) -> str:
    lines = _head(["ONNX Runtime's session", "ms", "peak memory"])
    for name, row in sessions.items():
        lines.append(_line([name, f"{row['ms']:.1f}", f"{row['peak_gb']:.3f} GB"]))
    return "\n".join(["### Options of a session\n", *lines])


def _head(cells: list[str]) -> list[str]:
    return [_line(cells), "|" + "---|" * len(cells)]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _measured_on(result: Result) -> str:
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version != "None")
    where = machine["cpu"] if machine["device"] == "cpu" else machine["device"]
    stayed = "All stayed in memory" if result["resident"] else "Each was started anew for each turn"
    return (
        f"{result['rounds']} turns of each, medians; larger batches a third of that. {stayed}. On {where}, "
        f"{machine['threads']} threads; the matrix product reached {result['product_gmacs']:.0f} GMAC/s; {versions}."
    )


def plot(results: Mapping[str, Result], path: Path) -> None:
    """Bars of stages, a panel for each shape."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    results = {shape: result for shape, result in results.items() if "rows" in result}
    figure, panels = plt.subplots(len(results), 1, figsize=(9, 0.6 + 2.6 * len(results)), squeeze=False)
    for panel, (shape, result) in zip(panels[:, 0], results.items(), strict=True):
        rows = dict(reversed(result["rows"].items()))
        left = [0.0] * len(rows)
        for stage, label in STAGES.items():
            widths = [row["stages_ms"][stage] for row in rows.values()]
            panel.barh([NAMES[name] for name in rows], widths, left=left, label=label)
            left = [start + width for start, width in zip(left, widths, strict=True)]
        panel.set_title(f"{_SHAPES.get(shape, shape)}: ms of one image", loc="left")
    panels[0, 0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
