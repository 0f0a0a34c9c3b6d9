"""From seconds and bytes to the figures of benchmarks.pipeline, what is wanted of them, and the page and the plot.

Knows nothing of processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from benchmarks.common import keeping
from benchmarks.common.figures import Goal
from benchmarks.pipeline.side import STAGES

PRODUCT = "product"
PRODUCT_MACS = 3072**3
REFERENCE = "torch"  # masks are compared with those of our PyTorch
Seconds = Sequence[Mapping[str, float]]
Result = Mapping[str, Any]

NAMES = {
    "published": "published form, PyTorch",
    "torch": "ours, PyTorch",
    "averaged": "ONNX Runtime, averaged maps",
    "weighted": "ONNX Runtime, weighted maps",
    "weighted_cpu": "… weighted, rewritten for CPUs",
    "int8": "… weighted, int8 UNet",
    "openvino": "OpenVINO, weighted maps",
    "openvino_bf16": "… bf16",
    "openvino_int8": "… int8 UNet",
    "openvino_bf16_tiny": "… bf16, tiny encoder",
    "tiny": "ONNX Runtime, weighted maps, tiny encoder",
    "int8_tiny": "… weighted, int8 UNet, tiny encoder",
    "fp16": "ours, PyTorch, fp16",
    "fp16_graph": "… CUDA graph",
    "fp16_tiny": "… tiny encoder",
    "fp16_tiny_graph": "… tiny encoder, CUDA graph",
    "onnx_fp16": "ONNX Runtime, weighted maps, fp16",
    "tensorrt": "TensorRT, weighted maps, fp16",
}
SHAPES = {
    "embedded": "The embedded backbone",
    "sd21": "SD-2.1-base's shapes",
    "sd15": "SD-1.5's shapes",
}
_STAGES = {
    "fit": "decode, fit",
    "encode": "encoder",
    "unet": "UNet, maps",
    "postprocess": "postprocess",
    "mask": "enlarge, argmax",
}
EXACT = ("averaged", "weighted", "weighted_cpu", "openvino")
# One technique after the other.
WATERFALL = ("published", "torch", "averaged", "weighted", "openvino", "openvino_bf16", "openvino_bf16_tiny")
HALF = ("fp16", "fp16_graph", "onnx_fp16", "tensorrt")  # with the reference's encoder
LEAST_AGREEMENT = {**dict.fromkeys(EXACT, 0.999), **dict.fromkeys(HALF, 0.99)}  # of pixels
LOST = Goal(label="points of mean IoU that a class loses, at most", relation="≤", wanted=1.0)


def _goals(shape: str, on_gpu: bool, amx: bool) -> dict[str, Goal]:
    """Return what is wanted of each figure, by its name; `amx`: whether the processor multiplies matrices of bf16."""
    three = ("≥", 3.0)
    wanted: dict[str, tuple[str, float]] = {}
    if shape == "embedded" and not on_gpu:
        wanted = dict.fromkeys(("averaged", "weighted", "openvino"), three)
    if shape == "sd21" and not on_gpu:
        wanted = {
            **dict.fromkeys(EXACT, three),
            **dict.fromkeys(("memory_weighted", "memory_weighted_cpu", "memory_openvino"), ("≤", 0.65)),
            **{"memory_averaged": ("≤", 0.85), "weighted_to_averaged": ("≥", 1.0), "int8_unet": ("≥", 1.8)},
            **{"int8_share": ("≥", 0.75), "tiny_encoder": ("≥", 5.0), "int8_tiny": ("≥", 6.0)},
        }
        if amx:
            wanted |= {"openvino_bf16": ("≥", 10.0), "openvino_bf16_tiny": ("≥", 20.0), "bf16_to_weighted": ("≥", 4.0)}
    if shape == "sd21" and on_gpu:
        wanted = {"networks_fp16_graph": ("≥", 5.0), "rate_fp16_graph": ("≥", 100.0)}
        wanted |= {"rate_fp16_tiny_graph": ("≥", 150.0)}
    wanted |= {f"24_parts_{name}": ("≤", 0.05) for name in EXACT}
    wanted |= {f"agreement_{name}": ("≥", least) for name, least in LEAST_AGREEMENT.items()}
    return {name: Goal(label=name, relation=sign, wanted=bound) for name, (sign, bound) in wanted.items()}


def result_of(
    runs: Mapping[str, Seconds],
    batches: Mapping[str, Mapping[int, Seconds]],
    peaks: Mapping[str, float],
    macs: Mapping[str, int],
    masks: Mapping[str, Any],
) -> dict[str, Any]:
    """Return rows by variant, ratios, agreement of masks, and what the machine can do at most."""
    fastest = PRODUCT_MACS / min(each["unet"] for each in runs[PRODUCT])
    rows = {
        name: _row(seconds, batches.get(name, {}), peaks[name], macs[name], fastest)
        for name, seconds in runs.items()
        if name != PRODUCT
    }
    found = {"agreement": agreement(masks), "ratios": ratios(rows)}
    return {"product_gmacs": round(fastest / 1e9, 1), "rows": rows, **found}


def _row(
    seconds: Seconds, batches: Mapping[int, Seconds], peak_bytes: float, macs: int, fastest: float
) -> dict[str, Any]:
    totals = [each["total"] for each in seconds]
    by_size = {1: seconds, **batches}
    rates = {size: size / median(each["total"] for each in of) for size, of in by_size.items()}
    networks = {size: size / median(each["total"] - each["fit"] for each in of) for size, of in by_size.items()}
    return {
        "ms": _ms(median(totals)),
        "least_ms": _ms(min(totals)),
        "most_ms": _ms(max(totals)),
        "stages_ms": {stage: _ms(median(each[stage] for each in seconds)) for stage in STAGES},
        "images_per_second": {str(size): round(each, 3) for size, each in rates.items()},
        "without_decoding": {str(size): round(each, 3) for size, each in networks.items()},
        "peak_gb": round(peak_bytes / 1e9, 3),
        "gmac": round(macs / 1e9, 2),
        "share_of_product": round(macs / median(totals) / fastest, 3),
    }


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 2)


def agreement(masks: Mapping[str, Any]) -> dict[str, float]:
    """Return the share of pixels on which each variant's masks equal our PyTorch's."""
    if REFERENCE not in masks:
        return {}
    others = {name: each for name, each in masks.items() if name not in (REFERENCE, "published")}
    return {name: round(float(np.mean(each == masks[REFERENCE])), 6) for name, each in others.items()}


def ratios(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return how many times faster than the published form each is, its share of memory, and step against step."""
    found: dict[str, float] = {}
    if published := rows.get("published"):
        for name, row in rows.items():
            if name != "published":
                found[name] = published["ms"] / row["ms"]
                found[f"memory_{name}"] = row["peak_gb"] / published["peak_gb"]
                found[f"networks_{name}"] = _best_rate(row) / _best_rate(published)
    steps = {"weighted_to_averaged": ("averaged", "weighted", "ms")}
    steps |= {"openvino_to_weighted": ("weighted", "openvino", "ms")}
    steps |= {"bf16_to_weighted": ("weighted", "openvino_bf16", "ms")}
    steps |= {"int8_unet": ("weighted", "int8", "unet"), "tiny_encoder": ("weighted", "tiny", "encode")}
    for ratio, (slow, fast, stage) in steps.items():
        if slow in rows and fast in rows:
            numerator, denominator = (row["ms"] if stage == "ms" else row["stages_ms"][stage] for row in
                                      (rows[slow], rows[fast]))  # fmt: skip
            found[ratio] = numerator / denominator
    return {name: round(found[name], 3) for name in sorted(found)}


def _best_rate(row: Mapping[str, Any]) -> float:
    return float(max(row["without_decoding"].values()))


def medians(seconds: Mapping[str, Seconds]) -> dict[str, float]:
    """Return medians in milliseconds, by key."""
    return {key: _ms(median(each["total"] for each in of)) for key, of in seconds.items()}


def flatness(by_parts: Mapping[str, float], few: int = 2, many: int = 24) -> dict[str, float]:
    """Return how much more expensive `many` parts are than `few`, as a share, by variant."""
    names = sorted({key.rpartition("-")[0] for key in by_parts})
    pairs = {name: (by_parts.get(f"{name}-{few}"), by_parts.get(f"{name}-{many}")) for name in names}
    return {name: round(high / low - 1, 4) for name, (low, high) in pairs.items() if low and high}


def verdicts(result: Result) -> list[tuple[str, str, str, str]]:
    """Return figure, wanted, measured and verdict of everything wanted that was measured."""
    on_gpu = result["machine"]["device"] != "cpu"
    amx = "AMX BF16" in result["machine"].get("instructions", "").partition("has no")[0]
    found = {**result["ratios"]}
    found |= {f"24_parts_{name}": more for name, more in flatness(result.get("growth", {}).get("parts", {})).items()}
    found |= {f"agreement_{name}": share for name, share in result["agreement"].items()}
    model = result.get("models", {}).get(f"int8-{result['parts']}", {})
    if "macs" in model:
        found["int8_share"] = round(model["macs_by_precision"].get("int8", 0) / model["macs"], 3)
    if on_gpu:
        found |= {f"rate_{name}": _best_rate(row) for name, row in result["rows"].items()}
    return [goal.row(found[name]) for name, goal in _goals(result["shape"], on_gpu, amx).items() if name in found]


def lost(accuracy: Mapping[str, Any]) -> dict[str, tuple[str, str, str, str]]:
    """Return by form the verdict on the most points of mean IoU that a class loses."""
    found = {form: max(of.values()) for form, of in accuracy["lost"].items() if form not in EXACT}
    return {form: LOST.row(most, f"{most:.2f}") for form, most in found.items()}


def waterfall(rows: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return a line for each technique: its milliseconds, and how many times faster than the row before and the first.

    None of them unless the first and at least two others were measured.
    """
    there = [name for name in WATERFALL if name in rows]
    if there[:1] != list(WATERFALL[:1]) or len(there) < 3:
        return []
    ms = [rows[name]["ms"] for name in there]
    return [
        [NAMES[name], f"{own:.0f}", f"{before / own:.2f}", f"{ms[0] / own:.2f}"]
        for name, own, before in zip(there, ms, ms[:1] + ms, strict=False)
    ]


def by_number(figures: Mapping[str, float]) -> tuple[list[int], list[list[str]]]:
    """Return the numbers of `NAME-NUMBER` -> milliseconds, and a row of a table for each name."""
    pairs = [key.rpartition("-") for key in figures]
    numbers = sorted({int(number) for _, _, number in pairs})
    rows = {name: [f"{figures[f'{name}-{number}']:.0f}" for number in numbers] for name, _, _ in pairs}
    return numbers, [[NAMES[name], *cells] for name, cells in rows.items()]


def page(results: Mapping[str, Result], plotted: str = "performance.png") -> str:
    """Return the whole document."""
    functions = {"verdicts": verdicts, "waterfall": waterfall, "by_number": by_number, "lost": lost}
    labels = {"names": NAMES, "stages": _STAGES, "shapes": SHAPES}
    return keeping.render("pipeline/page.md.j2", results=results, plotted=plotted, **functions, **labels)


def plot(results: Mapping[str, Result], path: Path) -> None:
    """Draw bars of the stages, a panel for each shape."""
    results = {shape: result for shape, result in results.items() if "rows" in result}
    with keeping.drawn(path, len(results), 1, (9, 0.6 + 2.6 * len(results))) as panels:
        for panel, (shape, result) in zip(panels[:, 0], results.items(), strict=True):
            rows = dict(reversed(result["rows"].items()))
            left = [0.0] * len(rows)
            for stage, label in _STAGES.items():
                widths = [row["stages_ms"][stage] for row in rows.values()]
                panel.barh([NAMES[name] for name in rows], widths, left=left, label=label)
                left = [start + width for start, width in zip(left, widths, strict=True)]
            panel.set_title(f"{SHAPES.get(shape, shape)}: ms of one image", loc="left")
        panels[0, 0].legend(fontsize="small")
