"""The page says of each goal whether it was met, and what was not measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.load_page import goals, markdown, plot
from benchmarks.load_server import PARTS

ROW: dict[str, Any] = {
    "requests": 9,
    "throughput": 3.0,
    "p50_ms": 1.0,
    "p95_ms": 2.0,
    "p99_ms": None,
    "rejects": 0,
    "reject_p50_ms": None,
    "errors": {"INTERNAL": 2},
    "client_cpu_share": 0.01,
    "cpu_ms": 9.0,
    "rate": 9.0,
    "deadline_s": 5.0,
    "models": {"car_unet": {"batch": 3.5, **dict.fromkeys(PARTS, 1.0)}},
}
RESULT: dict[str, Any] = {
    "machine": {"cpu": "an abacus", "cores": 2, "date": "today", "load_before": [0.1, 0.2, 0.3]},
    "floor": {"p50_ms": 1.0, "stages_ms": {"unet": 0.5}, "throughput": {"1": 1.0}, "cpu_ms": {"1": 7.0}},
    "closed": {"1": ROW, "8": ROW},
    "one_by_one": ROW,
    "capacity": 3.0,
    "open": {"0.5": ROW},
    "overload": ROW,
    "ratios": {
        "latency_to_floor": {"ratio": 1.3, "low": 1.2, "high": 1.4},
        "unet_batch": 3.5,
        "overload_reject_ms": None,
    },
}


def test_goals() -> None:
    lines = goals(RESULT).splitlines()
    assert "| ≤ 1.25 | 1.30 (1.20 to 1.40) | missed |" in lines[2]
    assert lines[3].endswith("| ≥ 3.0 | 3.5 | met |")
    assert lines[4].endswith("| none |  |")
    assert "not run" in lines[5]


def test_page_and_plot(tmp_path: Path) -> None:
    soak = {
        "wanted": 20,
        "requests": 10,
        "errors": {},
        "seconds": 60,
        "memory_mib": {"was": dict.fromkeys(("begin", "end", "growth"), 9.0)},
    }
    text = markdown(RESULT | {"soak": soak, "note": "By candle light."}, tmp_path / "load.png")
    for words in ("2 INTERNAL", "| – |", "an abacus", "load.png", "By candle light.", "10 of 20 requests", "+9.0"):
        assert words in text
    assert "| ≤ 8 | 9.0 | missed |" in text
    plot(RESULT, tmp_path / "load.png")
    assert (tmp_path / "load.png").stat().st_size > 1000
