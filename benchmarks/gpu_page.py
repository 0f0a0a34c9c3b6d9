"""What benchmarks.gpu measured, as tables and as a page. Knows only the figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Result = Mapping[str, Any]

ROWS = {
    "published": "published form, fp32",
    "fp32": "ours, fp32",
    "fp16": "ours, fp16",
    "graph": "ours, fp16, CUDA graph",
    "tiny": "ours, fp16, tiny encoder",
    "tiny_graph": "ours, fp16, tiny encoder, CUDA graph",
    "onnx": "exported, ONNX Runtime",
    "tensorrt": "exported, TensorRT",
}
# Row: at least so many images/s, and row: at least so many times the published form, at SD-2.1's shapes on a GPU.
WANTED_RATES = {"graph": 100, "tiny_graph": 150}
WANTED_RATIOS = {"graph": 5.0}

_ABOUT = """# On a GPU

Written by `benchmarks/gpu.sh`, which runs `python -m benchmarks.gpu`: the method's published form of inference against
ours on one card, in one process, one image batch of each in turn, from fitted pixels on the device to masks on the
device. Medians over the turns. Memory is PyTorch's largest allocation while one row runs, its weights included;
what ONNX Runtime and TensorRT allocate themselves is not seen there.

**The published form**: fp32, a batch of two for each image, unconditional and conditional, every attention's map
written out and those that are read kept for each layer and head, the image's latents sampled. **Ours**: one
conditional pass, text and timestep folded, fused attention, WAS accumulated as attention, no map of N x N pixels.
Weights are random, of the exact shapes; masks are compared with those of our fp32 form with the same encoder.
"""


def table(result: Result) -> str:
    """Markdown: for each batch size a line for each row, what was not run, and what it was measured on."""
    parts = [_of_batch(result, batch) for batch in result["batches"]]
    missing = [f"Not run: {ROWS[name]} ({reason})." for name, reason in result["not_run"].items()]
    return "\n\n".join([*parts, *missing, *_wanted(result), _measured_on(result)])


def page(results: Mapping[str, Result]) -> str:
    """The whole document, a chapter for each shape."""
    chapters = [f"## {shape}\n\n{table(result)}" for shape, result in results.items()]
    return "\n".join([_ABOUT, "\n\n".join(chapters), ""])


def _of_batch(result: Result, batch: int) -> str:
    lines = [
        f"| {result['pixels']} px, {result['parts']} parts, batch {batch} | ms | least to most | images/s "
        "| times the published form | peak memory | equal pixels |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, told in ROWS.items():
        row = result["rows"].get(name, {}).get(str(batch))
        if row:
            equal = "" if row["agreement"] is None else f"{100 * row['agreement']:.2f} %"
            memory = "" if row["peak_gb"] is None else f"{row['peak_gb']:.2f} GB"
            ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
            lines.append(
                f"| {told} | {row['ms']:.1f} | {row['least_ms']:.1f} to {row['most_ms']:.1f} | {row['rate']:.1f} "
                f"| {ratio} | {memory} | {equal} |"
            )
    return "\n".join(lines)


def _wanted(result: Result) -> list[str]:
    if result["shape"] != "sd21" or result["machine"]["device"] == "cpu":
        return []
    told = []
    for wanted, key, unit in ((WANTED_RATES, "rate", "images/s"), (WANTED_RATIOS, "ratio", "times")):
        for name, least in wanted.items():
            best = max((row[key] or 0.0 for row in result["rows"].get(name, {}).values()), default=0.0)
            told.append(f"{ROWS[name]}: aim {least:g} {unit}, {'reached' if best >= least else 'not reached'}")
    return ["; ".join(told) + "."]


def _measured_on(result: Result) -> str:
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version != "None")
    where = machine["device"] if machine["device"] != "cpu" else f"the CPU ({machine['threads']} threads)"
    tf32 = ", ".join(name for name, on in machine["tf32"].items() if on) or "nothing"
    return f"{result['turns']} turns on {where}; fp32 rows use TF32 for {tf32} (PyTorch's defaults); {versions}."
