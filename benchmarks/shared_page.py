"""What benchmarks.shared measured, as a page. Knows only the figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.load_page import closed_table

Result = Mapping[str, Any]
_ABOUT = """# The shared form, measured

Written by `python -m benchmarks.shared`; do not edit. One server, as `serve/launch.py` starts it, has one segmenter of
the embedded backbone in both forms: baked in, and shared (one UNet that takes the text embedding as an input). Requests
for the two take turns, in an order drawn by chance, on the same pictures; runs of eight clients take turns as well.
Ratios are geometric means of pairs, with the 95 % interval that resampling the pairs gives. Memory is what is resident
in all processes of the server, shared memory counted once, before the segmenters are published and after each has
answered; as many requests as come in between were answered before the first look."""


def goals(result: Result) -> str:
    """A line for each figure that was asked for."""
    compared, many, mixed = result["compared"], result["many"], result["mixed"]
    latency, publish = compared["latency_ratio"], many["publish_to_answer_s"]
    rows = (
        ("latency shared / baked in, upper end of the 95 % interval", "≤ 1.05", latency["high"] <= 1.05,
         f"{latency['high']:.3f} (ratio {latency['ratio']:.3f}, {latency['low']:.3f} to {latency['high']:.3f})"),
        (f"server memory of each of {many['count']} segmenters, MB", "≤ 0.5", many["memory_mb_each"] <= 0.5,
         f"{many['memory_mb_each']:.3f}"),
        (f"throughput over {mixed['names']['mixed']} segmenters / over one", "≥ 0.95",
         mixed["mixed_to_one"]["ratio"] >= 0.95, _interval(mixed["mixed_to_one"])),
        ("mean batch of the UNet, 8 clients, every request another segmenter", "≥ 3", mixed["unet_batch"] >= 3,
         f"{mixed['unet_batch']:.2f}"),
        ("publish to first answer, s", "< 1", publish["max"] < 1,
         f"median {publish['median']:.2f}, longest {publish['max']:.2f}"),
    )  # fmt: skip
    lines = [f"| {label} | {wanted} | {got} | {'met' if good else 'missed'} |" for label, wanted, good, got in rows]
    return "\n".join(["| figure | wanted | measured | |", "|---|---|---|---|", *lines])


def _interval(ratio: Mapping[str, float]) -> str:
    return f"{ratio['ratio']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})"


def markdown(result: Result) -> str:
    compared, mixed, machine = result["compared"], result["mixed"], result["machine"]
    times = compared["latency_ms"]
    single = (
        f"Single requests, medians of {compared['latency_ratio']['pairs']} pairs: baked in {times['baked']:.1f} ms, "
        f"shared {times['shared']:.1f} ms. Throughput of eight clients, shared to baked in: "
        f"{_interval(compared['throughput_ratio'])}."
    )
    kinds = {f"{mixed['names'][kind]} shared" if kind != "one" else "one shared": row for kind, row in _rows(mixed)}
    load = ", ".join(map(str, machine["load_before"]))
    blocks = [_ABOUT, "## In short", goals(result), *([result["note"]] if result.get("note") else [])]
    blocks += ["## Against baked in", single, closed_table(dict(_rows(compared)))]
    blocks += ["## Many names", closed_table(kinds), "## Publishing", _publishing(result)]
    blocks += ["## Memory", _memory(result)]
    where = f"{machine['cpu']}, {machine['cores']} cores, {machine['date']}; load average before the run: {load}."
    return "\n\n".join([*blocks, f"## Where\n\n{where} Maps: {result['maps']}."]) + "\n"


def _rows(section: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return list(section["closed"].items())


def _publishing(result: Result) -> str:
    lines = [
        "From the start of the publication, the check on the running server included, to the first mask of a new "
        "client that looks the name up, in seconds. The baked ones are networks that were exported before.",
        "",
        "| form | published | median | p95 | longest |",
        "|---|---:|---:|---:|---:|",
    ]
    for form, key in (("shared", "many"), ("baked in", "baked")):
        own = result[key]
        times = " | ".join(f"{own['publish_to_answer_s'][name]:.2f}" for name in ("median", "p95", "max"))
        lines.append(f"| {form} | {own.get('timed', own['count'])} | {times} |")
    if whole := result.get("whole_command_s"):
        lines += [
            "",
            "The whole of `export/build.py`, which loads PyTorch, exports and proves before it publishes: "
            f"{whole['shared']:.1f} s shared, {whole['baked']:.1f} s baked in.",
        ]
    return "\n".join(lines)


def _memory(result: Result) -> str:
    many, baked = result["many"], result["baked"]
    lines = [
        f"{many['answered']} of {many['count']} answered in the end. "
        f"{many['memory_mb_each']:.3f} MB for each shared segmenter, whose file is {many['file_mb']:.2f} MB; "
        f"{baked['memory_mb_each']:.0f} MB for each baked one.",
        "",
        f"| MiB | before | after {many['count']} shared |",
        "|---|---:|---:|",
    ]
    return "\n".join(
        lines + [f"| {name} | {own['before']:.1f} | {own['after']:.1f} |" for name, own in many["memory_mib"].items()]
    )
