"""What the benchmarks compute and keep: figures by hand, goals, JSON, and the pages in docs/ from their figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.common import keeping
from benchmarks.common.figures import Goal, growth, ratio
from benchmarks.common.server import PARTS, difference, per_request, together
from benchmarks.load import recovery, shared
from benchmarks.load.figures import in_time, pairs, pooled, summary
from benchmarks.pipeline import figures, optimize
from benchmarks.pipeline.figures import PRODUCT_MACS, flatness, medians, ratios, result_of, verdicts
from benchmarks.pipeline.side import STAGES
from benchmarks.quality import tables

from painting import ROOT

load = import_module("benchmarks.load.__main__")
PAGES: dict[str, Callable[[Any], str]] = {
    "performance": figures.page,
    "optimise-speed": optimize.page,
    "load": load.page,
    "shared": shared.page,
    "recovery": recovery.page,
    "results": tables.page,
}


@pytest.mark.parametrize("name", PAGES)
def test_the_page_in_the_repository_is_of_its_figures(name: str) -> None:
    kept, shown = (ROOT / "docs" / f"{name}.{ending}" for ending in ("json", "md"))
    assert shown.read_text() == PAGES[name](keeping.read(kept))


@pytest.mark.parametrize("name", [*PAGES, "publishing", "one-shot"])
def test_kept_figures_are_a_record_a_line(name: str) -> None:
    text = (ROOT / "docs" / f"{name}.json").read_text()
    assert any(keeping.compact(json.loads(text), depth) == text for depth in (2, 3))
    assert len(text.splitlines()) < 300


def test_results_of_several_shapes_are_kept(tmp_path: Path) -> None:
    options = optimize._arguments(["--json", str(tmp_path / "kept.json"), "--page", str(tmp_path / "page.md")])
    for shape, part in (("embedded", 1), ("sd21", 2), ("embedded", 3)):
        keeping.keep(options, {f"part {part}": part}, json.dumps, shape)
    kept = {"embedded": {"part 1": 1, "part 3": 3}, "sd21": {"part 2": 2}}
    assert keeping.read(tmp_path / "kept.json") == kept == json.loads((tmp_path / "page.md").read_text())
    assert len(list(tmp_path.iterdir())) == 2


def test_goals() -> None:
    least, most = (Goal(label="x", relation=sign, wanted=1.0, form=".2f") for sign in "≥≤")
    assert least.row(0.5) == ("x", "≥ 1.00", "0.50", "missed") and most.row(0.5)[3] == "met"
    assert most.row({"ratio": 1.3, "low": 1.2, "high": 1.4})[2:] == ("1.30 (1.20 to 1.40)", "missed")
    assert least.row(None)[2:] == ("none", "")


def test_the_interval_holds_the_ratio_and_narrows_with_agreement() -> None:
    steady, wild = ratio([2.0, 4.0, 8.0], [1.0, 2.0, 4.0]), ratio([1.0, 4.0, 2.0], [1.0, 1.0, 1.0])
    assert steady["low"] == pytest.approx(2) and steady["high"] == pytest.approx(2)
    assert wild["ratio"] == pytest.approx(2) and wild["low"] < 1.5 and wild["high"] > 2.5


def test_growth_leaves_the_beginning_out() -> None:
    samples = [{"was": 0.0}] * 2 + [{"was": 10.0 + turn} for turn in range(8)]
    assert growth(samples) == {"was": {"begin": 10.0, "end": 17.0, "growth": 7.0}}


def _answer(*asked: tuple[str, int, float, float], seconds: float = 2.0) -> dict[str, Any]:
    return {"seconds": seconds, "client_cpu": 0.5, "asked": [list(each) for each in asked]}


def test_latency_is_of_answers_from_when_they_were_due() -> None:
    answer = _answer(("OK", 0, 0.3, 0.1), ("OK", 0, 0.1, 0.1), ("UNAVAILABLE", 0, 0.02, 0.02), ("INTERNAL", 0, 9, 9))
    got = summary(answer)
    assert got["p50_ms"] == pytest.approx(200) and got["throughput"] == 1.0
    assert got["rejects"] == 1 and got["reject_p50_ms"] == pytest.approx(20)
    assert got["errors"] == {"INTERNAL": 1} and got["client_cpu_share"] == 0.25
    assert summary(pooled([answer, answer]))["throughput"] == 1.0
    nothing = _answer(("UNAVAILABLE", 0, 0.1, 0.1))
    assert summary(nothing)["p50_ms"] is None and in_time(nothing, 1.0) is None


def test_accepted_in_time_are_those_not_refused_that_came_before_their_deadline() -> None:
    asked = [("OK", 0, 0.9, 0.1), ("OK", 0, 1.1, 0.1), ("DEADLINE_EXCEEDED", 0, 1, 1), ("UNAVAILABLE", 0, 0, 0)]
    assert in_time(_answer(*asked), 1.0) == pytest.approx(1 / 3)


def test_a_pair_is_of_one_round_whichever_came_first() -> None:
    asked = [("OK", 1, 0.2, 0.2), ("OK", 0, 0.1, 0.1), ("OK", 0, 0.3, 0.3), ("INTERNAL", 1, 0.1, 0.1)]
    assert pairs(_answer(*asked)) == [(0.1, 0.2)]


def test_what_triton_counted_in_between_for_one_request() -> None:
    zero = dict.fromkeys(PARTS, 0)
    before = {"unet": {"requests": 5, "executions": 5, **zero}}
    after = {"unet": {"requests": 13, "executions": 7, **zero, "queue": 16_000_000}}
    once = difference(before, after | {"idle": {"requests": 0, "executions": 0, **zero}})
    assert per_request(once) == {"unet": {"requests": 8, "batch": 4.0, **dict.fromkeys(PARTS, 0), "queue": 2.0}}
    assert per_request(together([once, once]))["unet"]["requests"] == 16


def _seconds(unet: float, encode: float = 0.5) -> dict[str, float]:
    stages = dict.fromkeys(STAGES, 0.0) | {"unet": unet, "encode": encode}
    return stages | {"total": sum(stages.values())}


def _result(device: str = "cpu") -> dict[str, Any]:
    runs = {
        "product": [_seconds(0.2, 0), _seconds(0.1, 0)],
        "published": [_seconds(7.5), _seconds(9.5), _seconds(8.5)],
        "torch": [_seconds(4.0)],
        "weighted": [_seconds(2.0)],
        "int8": [_seconds(1.0)],
        "tiny": [_seconds(2.0, 0.1)],
        "fp16_graph": [_seconds(0.09, 0)],
    }
    names = [name for name in runs if name != "product"]
    masks = {name: np.zeros((3, 4, 4), np.uint8) for name in names}
    masks["int8"][0, 0, :3] = masks["fp16_graph"][0, 0, :1] = 1
    batches = {"weighted": {2: [_seconds(3.5)]}, "fp16_graph": {8: [_seconds(0.079, 0)]}}
    peaks = {name: 8e9 if name == "published" else 4e9 for name in names}
    made = result_of(runs, batches, peaks, dict.fromkeys(names, PRODUCT_MACS), masks)
    grown = {"parts": {f"weighted-{parts}": 100.0 + parts for parts in (2, 24)}, "sides": {"weighted-512": 7.0}}
    return {
        "shape": "sd21",
        "pixels": 512,
        "parts": 6,
        "rounds": 3,
        "resident": False,
        "missing": {"int8_tiny": "no tiny encoder"},
        "models": {"int8-6": {"macs": 200, "macs_by_precision": {"int8": 160, "fp32": 40}}},
        **made,
        "growth": grown,
        "machine": {"cpu": "A CPU", "device": device, "threads": 2, "versions": {"torch": "2", "cuda": "None"}},
    }


def test_pipelines_rows_and_ratios() -> None:
    result = _result()
    row = result["rows"]["published"]
    assert (row["ms"], row["least_ms"], row["most_ms"]) == (9000.0, 8000.0, 10000.0)
    assert row["stages_ms"] == dict.fromkeys(STAGES, 0.0) | {"encode": 500.0, "unet": 8500.0}
    assert row["share_of_product"] == round(0.1 / 9, 3)  # the fastest product counts
    assert result["rows"]["weighted"]["images_per_second"] == {"1": 0.4, "2": 0.5}
    found = result["ratios"]
    assert (found["weighted"], found["memory_weighted"]) == (3.6, 0.5)
    assert (found["int8_unet"], found["tiny_encoder"]) == (2.0, 5.0) and "weighted_to_averaged" not in found
    assert set(ratios({"weighted": row, "tiny": row})) == {"tiny_encoder"}
    assert result["agreement"]["int8"] == round(1 - 3 / 48, 6)
    by_parts = medians({f"weighted-{parts}": [_seconds(0.5 + parts / 100)] for parts in (2, 24, 77)})
    assert by_parts["weighted-2"] == 1020.0 and flatness(by_parts) == {"weighted": round(1.24 / 1.02 - 1, 4)}


def test_pipelines_verdicts_on_a_cpu_and_on_a_gpu() -> None:
    told = {name: (found, word) for name, _, found, word in verdicts(_result())}
    assert told["weighted"] == ("3.6", "met") and told["int8_share"] == ("0.8", "met")
    assert told["24_parts_weighted"] == (f"{round(124 / 102 - 1, 4):g}", "missed")
    assert told["agreement_weighted"] == ("1", "met") and "agreement_int8" not in told
    on_gpu = {name: (found, word) for name, _, found, word in verdicts(_result("A card"))}
    assert on_gpu["rate_fp16_graph"] == ("101.266", "met") and on_gpu["networks_fp16_graph"][1] == "met"
    assert on_gpu["agreement_fp16_graph"] == ("0.979167", "missed") and "rate_fp16_tiny_graph" not in on_gpu
    wrong = import_module("benchmarks.pipeline.__main__").disagreements(_result("A card"))
    assert wrong == ["agreement_fp16_graph: 0.979167 of the pixels are as in fp32 PyTorch, wanted ≥ 0.99"]


def test_pipelines_page_and_plot(tmp_path: Path) -> None:
    more = {"triton": {"weighted": {"served_ms": 12.0, "process_ms": 10.0}}}
    text = figures.page({"sd21": _result() | more, "sd15": _result("A card")})
    assert "| published form, PyTorch | 9000 | 8000 to 10000 | 0.11 |  |  | 8.00 GB |" in text
    assert "- … weighted, int8 UNet, tiny encoder: no tiny encoder." in text
    assert "| ms by parts | 2 | 24 |" in text and "| ONNX Runtime, weighted maps | 102 | 124 |" in text
    assert "| ONNX Runtime, weighted maps | 12.0 | 10.0 | 2.0 |" in text
    assert "without decoding, batch 8" in text and "On A card, 2 threads" in text
    figures.plot({"sd21": _result()}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_a_training_steps_figures() -> None:
    ms = {"published": 4000, "guided": 2000, "plain": 1000, "guided_reused": 1600, "plain_reused": 600}
    seconds = {of: [{"encode": 0.1, "learn": of / 1e3 - 0.1}, {"encode": 0.3, "learn": of / 1e3}] for of in ms.values()}
    rows = {name: optimize.row(seconds[of], 15e9 if name == "published" else 7e9) for name, of in ms.items()}
    assert rows["plain"] == {
        "ms": 1150.0,
        "least_ms": 1100.0,
        "most_ms": 1200.0,
        "encode_ms": 200.0,
        "learn_ms": 950.0,
        "peak_gb": 7.0,
    }
    found = optimize.ratios(rows)
    assert found["plain_encoded"] == 4.37 and found["memory"] == 2.14
    assert [row[3] for row in optimize.verdicts({"shape": "sd21", "ratios": found | {"plain": 2.6}})].count(
        "missed"
    ) == 1


def test_what_is_missing_on_the_load_page_is_said() -> None:
    kept = keeping.read(ROOT / "docs" / "load.json")
    row = kept["closed"]["1"]
    row |= {"p99_ms": None, "errors": {"INTERNAL": 2}}
    del kept["soak"]
    text = load.page(kept | {"note": "By candle light."})
    for words in ("| – | 0 | 2 INTERNAL |", "By candle light.", "/dev/shm, MiB | ≤ 8 | not run |  |"):
        assert words in text
