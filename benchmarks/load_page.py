"""What benchmarks.load measured, as a page and as a plot. Knows only the figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.load_server import PARTS

Result = Mapping[str, Any]
FLAT_MIB = 8.0  # of growth in all processes together, over a soak
_ABOUT = """# Under load

Written by `python -m benchmarks.load`; do not edit. One machine runs everything: the server as `serve/launch.py` starts
it, the client, which is a process of its own that sends prepared JPEG files over gRPC and takes masks, and the floor:
the same ONNX files, `slime_image` and `slime_was` called one after the other in one process. In each round the floor,
the closed loops and a second server whose networks compute one image at a time take turns, so what the machine does
beside falls on all of them. Latency is counted from when a request was due: in the open loop that is when the Poisson
process says so, whether or not the client or the server was free. Each ratio is the geometric mean over rounds, with
the 95 % interval that resampling the rounds gives.
"""


def goals(result: Result) -> str:
    """A line for each figure that was asked for, with what was wanted and whether it is so."""
    lines = ["| figure | wanted | measured | |", "|---|---|---|---|"]
    ratios = result.get("ratios", {})
    for label, key, relation, wanted, form in _GOALS:
        if key in ratios:
            verdict, shown = _judged(ratios[key], relation, wanted, form)
            lines.append(f"| {label} | {relation} {wanted:{form}} | {shown} | {verdict} |")
    return "\n".join([*lines, *_soak_goal(result)])


_GOALS = (
    ("p50 of one client over gRPC, to the sum of the stages in one process", "latency_to_floor", "≤", 1.25, ".2f"),
    ("throughput at saturation to that in one process", "throughput_to_floor", "≥", 0.9, ".2f"),
    ("mean batch of the UNet with 8 clients", "unet_batch", "≥", 3.0, ".1f"),
    ("throughput with batches to that of one image at a time, 8 clients", "batched_to_one_by_one", "≥", 1.0, ".2f"),
    ("overload: share of accepted requests answered within their deadline", "overload_in_time", "≥", 1.0, ".3f"),
    ("overload: median of a rejection at the client, ms", "overload_reject_ms", "≤", 50.0, ".0f"),
    ("overload: throughput to the peak", "overload_to_peak", "≥", 0.9, ".2f"),
)  # fmt: skip


def _judged(value: Any, relation: str, wanted: float, form: str) -> tuple[str, str]:
    """Whether it is as wanted, and the figure as text."""
    if value is None:
        return "", "none"
    point = value["ratio"] if isinstance(value, Mapping) else value
    shown = f"{point:{form}}"
    if isinstance(value, Mapping):
        shown += f" ({value['low']:{form}} to {value['high']:{form}})"
    return ("met" if (point <= wanted if relation == "≤" else point >= wanted) else "missed"), shown


def _soak_goal(result: Result) -> list[str]:
    if "soak" not in result:
        return ["| soak of 20,000 requests: growth of memory and /dev/shm | flat | not run | |"]
    soak = result["soak"]
    grown = sum(each["growth"] for each in soak["memory_mib"].values())
    label = f"soak of {soak['requests']:,} requests: growth of memory and /dev/shm, MiB"
    return [f"| {label} | ≤ {FLAT_MIB:g} | {grown:.1f} | {'met' if grown <= FLAT_MIB else 'missed'} |"]


def markdown(result: Result, plot: Path | None = None) -> str:
    machine = result["machine"]
    load = ", ".join(map(str, machine["load_before"]))
    where = f"{machine['cpu']}, {machine['cores']} cores, {machine['date']}; load average before the run: {load}."
    blocks = [_ABOUT, "## In short", goals(result), *_note(result)]
    blocks += [
        "## Closed loop",
        closed_table({"1 client" if key == "1" else f"{key} clients": row for key, row in result["closed"].items()}),
    ]
    blocks += [_one_by_one(result), "## Open loop"]
    blocks += [closed_table({f"{row['rate']:.1f} a second": row for row in result["open"].values()})]
    blocks += [f"## {result['overload']['rate'] / result['capacity']:g} times the capacity", _overload(result)]
    blocks += ["## Where the time goes", _stages(result)]
    if "soak" in result:
        blocks += ["## Soak", _soak(result["soak"])]
    if plot:
        blocks.insert(4, f"![latency and throughput]({plot.name})")
    return "\n\n".join([*(block.strip() for block in blocks), f"## Where\n\n{where}"]) + "\n"


def _note(result: Result) -> list[str]:
    return [result["note"]] if result.get("note") else []


def closed_table(rows: Mapping[str, Any]) -> str:
    lines = [
        "| | requests | masks a second | p50 ms | p95 | p99 | rejected | other errors | CPU, ms a mask |",
        "|---|---:|---:|---:|---:|---:|---:|---|---:|",
    ]
    for name, row in rows.items():
        errors = ", ".join(f"{count} {status}" for status, count in row["errors"].items()) or "none"
        times = " | ".join(_ms(row[f"p{share}_ms"]) for share in (50, 95, 99))
        lines.append(
            f"| {name} | {row['requests']} | {row['throughput']:.1f} | {times} | {row['rejects']} | {errors} "
            f"| {row['cpu_ms']:.0f} |"
        )
    return "\n".join(lines)


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _one_by_one(result: Result) -> str:
    floor, single = result["floor"], result["one_by_one"]
    cpu = ", ".join(f"{ms:.0f} ms in batches of {batch}" for batch, ms in floor["cpu_ms"].items())
    rates = ", ".join(f"{rate:.1f} a second in batches of {batch}" for batch, rate in floor["throughput"].items())
    return (
        f"Networks that compute one image at a time, 8 clients: {single['throughput']:.1f} masks a second, "
        f"p50 {single['p50_ms']:.1f} ms. In one process: p50 {floor['p50_ms']:.1f} ms; {rates}. "
        f"The last column is the CPU time of a mask in all processes of the server, which hangs least on what else the "
        f"machine does; in one process it is {cpu}."
    )


def _overload(result: Result) -> str:
    row = result["overload"]
    rejected = f"{row['rejects']} of {row['requests']} rejected, in {_ms(row['reject_p50_ms'])} ms (median)"
    return f"{closed_table({'open loop': row})}\n\n{rejected}; every request's deadline was {row['deadline_s']:g} s."


def _stages(result: Result) -> str:
    """Of one client and of eight, from Triton's statistics."""
    names = " | ".join(part.replace("compute_", "").replace("infer", "compute") for part in PARTS)
    lines = [f"| clients | model | mean batch | {names} |", "|---:|---|---:|---:|---:|---:|---:|"]
    for clients in ("1", "8"):
        for model, row in result["closed"][clients]["models"].items():
            times = " | ".join(f"{row[part]:.2f}" for part in PARTS)
            lines.append(f"| {clients} | {model} | {row['batch']:.2f} | {times} |")
    floor = ", ".join(f"{name} {ms:.1f}" for name, ms in result["floor"]["stages_ms"].items())
    text = "ms of one request. A batch's time counts whole for each request in it, as each waited for it."
    return "\n".join([f"{text} In one process, one image: {floor}.", "", *lines])


def _soak(soak: Result) -> str:
    lines = ["| MiB | after a fifth | at the end | growth |", "|---|---:|---:|---:|"]
    lines += [
        f"| {name} | {own['begin']:.1f} | {own['end']:.1f} | {own['growth']:+.1f} |"
        for name, own in soak["memory_mib"].items()
    ]
    errors = ", ".join(f"{count} {status}" for status, count in soak["errors"].items()) or "no error"
    text = f"{soak['requests']:,} of {soak['wanted']:,} requests in {soak['seconds'] / 60:.1f} minutes, {errors}."
    return "\n".join([f"{text} Resident memory of each process without what lies in /dev/shm.", "", *lines])


def plot(result: Result, path: Path) -> None:
    """Latency against throughput in both loops."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
    for share in (50, 95, 99):
        key = f"p{share}_ms"
        for panel, name in ((left, "closed"), (right, "open")):
            rows = list(result[name].values())
            panel.plot([row["throughput"] for row in rows], [row[key] for row in rows], "o-", label=f"p{share}")
    for clients, row in result["closed"].items():
        left.annotate(f" {clients}", (row["throughput"], row["p50_ms"]))
    left.axhline(result["floor"]["p50_ms"], color="grey", linestyle=":", label="one process, p50")
    left.set_title("closed loop (number: clients)", loc="left")
    right.set_title("open loop, rising rates", loc="left")
    for panel in (left, right):
        panel.set_xlabel("masks a second")
        panel.set_ylabel("ms from when it was due")
        panel.set_ylim(bottom=0)
        panel.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
