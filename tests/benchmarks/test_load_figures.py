"""Outcomes to figures, by hand."""

from __future__ import annotations

from typing import Any

import pytest
from benchmarks.load_figures import growth, in_time, pairs, pooled, ratio, summary
from benchmarks.load_server import difference, per_request, together


def _answer(*asked: tuple[str, int, float, float], seconds: float = 2.0) -> dict[str, Any]:
    return {"seconds": seconds, "client_cpu": 0.5, "asked": [list(each) for each in asked]}


def test_latency_is_of_answers_from_when_they_were_due() -> None:
    answer = _answer(("OK", 0, 0.3, 0.1), ("OK", 0, 0.1, 0.1), ("UNAVAILABLE", 0, 0.02, 0.02), ("INTERNAL", 0, 9, 9))
    got = summary(answer)
    assert got["p50_ms"] == pytest.approx(200) and got["throughput"] == 1.0
    assert got["rejects"] == 1 and got["reject_p50_ms"] == pytest.approx(20)
    assert got["errors"] == {"INTERNAL": 1} and got["client_cpu_share"] == 0.25


def test_nothing_answered_is_no_figure() -> None:
    got = summary(_answer(("UNAVAILABLE", 0, 0.1, 0.1)))
    assert got["p50_ms"] is None and got["throughput"] == 0
    assert in_time(_answer(("UNAVAILABLE", 0, 0.1, 0.1)), 1.0) is None


def test_accepted_in_time_are_those_not_refused_that_came_before_their_deadline() -> None:
    asked = [("OK", 0, 0.9, 0.1), ("OK", 0, 1.1, 0.1), ("DEADLINE_EXCEEDED", 0, 1, 1), ("UNAVAILABLE", 0, 0, 0)]
    assert in_time(_answer(*asked), 1.0) == pytest.approx(1 / 3)


def test_runs_of_a_kind_add_up() -> None:
    one = _answer(("OK", 0, 0.1, 0.1), seconds=1.0)
    assert summary(pooled([one, one]))["throughput"] == 1.0


def test_a_pair_is_of_one_round_whichever_came_first() -> None:
    asked = [("OK", 1, 0.2, 0.2), ("OK", 0, 0.1, 0.1), ("OK", 0, 0.3, 0.3), ("INTERNAL", 1, 0.1, 0.1)]
    assert pairs(_answer(*asked)) == [(0.1, 0.2)]


def test_the_interval_holds_the_ratio_and_narrows_with_agreement() -> None:
    steady, wild = ratio([2.0, 4.0, 8.0], [1.0, 2.0, 4.0]), ratio([1.0, 4.0, 2.0], [1.0, 1.0, 1.0])
    assert steady["low"] == pytest.approx(2) and steady["high"] == pytest.approx(2)
    assert wild["ratio"] == pytest.approx(2) and wild["low"] < 1.5 and wild["high"] > 2.5


def test_growth_leaves_the_beginning_out() -> None:
    samples = [{"was": 0.0}] * 2 + [{"was": 10.0 + turn} for turn in range(8)]
    assert growth(samples) == {"was": {"begin": 10.0, "end": 17.0, "growth": 7.0}}


def test_what_triton_counted_in_between_for_one_request() -> None:
    zero = dict.fromkeys(("queue", "compute_input", "compute_infer", "compute_output"), 0)
    before = {"unet": {"requests": 5, "executions": 5, **zero}}
    after = {"unet": {"requests": 13, "executions": 7, **zero, "queue": 16_000_000}, "idle": {**before["unet"]}}
    once = difference(before, after | {"idle": {"requests": 0, "executions": 0, **zero}})
    assert per_request(once) == {
        "unet": {"requests": 8, "batch": 4.0, "queue": 2.0, "compute_input": 0, "compute_infer": 0, "compute_output": 0}
    }
    assert per_request(together([once, once]))["unet"]["requests"] == 16
