"""The pipeline benchmark's arithmetic and its page, from figures that were made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.pipeline_accuracy import figures
from benchmarks.pipeline_figures import PRODUCT_MACS, flatness, growth_figures, ratios, result_of
from benchmarks.pipeline_side import STAGES

from benchmarks import pipeline_page
from painting import ROOT


def _seconds(unet: float, encode: float = 0.5) -> dict[str, float]:
    stages = dict.fromkeys(STAGES, 0.0) | {"unet": unet, "encode": encode}
    return stages | {"total": sum(stages.values())}


def _result(shape: str = "sd21") -> dict[str, Any]:
    runs = {
        "product": [_seconds(0.2, 0), _seconds(0.1, 0)],
        "published": [_seconds(7.5), _seconds(9.5), _seconds(8.5)],
        "torch": [_seconds(4.0)],
        "averaged": [_seconds(2.5)],
        "weighted": [_seconds(2.0)],
        "int8": [_seconds(1.0)],
        "tiny": [_seconds(2.0, 0.1)],
    }
    names = [name for name in runs if name != "product"]
    peaks = {"published": 8e9, "torch": 5e9, "averaged": 6e9, "weighted": 4e9, "int8": 2e9, "tiny": 4e9}
    masks = {name: np.zeros((3, 4, 4), np.uint8) for name in names}
    masks["int8"][0, 0, :3] = 1
    batches = {"weighted": {2: [_seconds(3.5)]}}
    figures = result_of(runs, batches, peaks, dict.fromkeys(names, PRODUCT_MACS), masks)
    machine = {"cpu": "A CPU", "device": "cpu", "threads": 2, "versions": {"torch": "2", "cuda": "None"}}
    about: dict[str, Any] = {
        "pixels": 512,
        "parts": 6,
        "rounds": 3,
        "resident": False,
        "missing": {"int8_tiny": "no tiny encoder"},
    }
    grown = {"parts": {f"weighted-{parts}": 100.0 + parts for parts in (2, 24)}, "sides": {"weighted-512": 7.0}}
    about["models"] = {"int8-6": {"macs": 200, "macs_by_precision": {"int8": 160, "fp32": 40}}}
    return {"shape": shape, **about, **figures, "growth": grown, "machine": machine}


def test_rows() -> None:
    row = _result()["rows"]["published"]
    assert (row["ms"], row["least_ms"], row["most_ms"]) == (9000.0, 8000.0, 10000.0)
    assert row["stages_ms"] == {"fit": 0.0, "encode": 500.0, "unet": 8500.0, "postprocess": 0.0, "mask": 0.0}
    assert (row["peak_gb"], row["gmac"]) == (8.0, round(PRODUCT_MACS / 1e9, 2))
    assert row["share_of_product"] == round(0.1 / 9, 3)  # the fastest product counts
    assert _result()["rows"]["weighted"]["images_per_second"] == {"1": 0.4, "2": 0.5}


def test_ratios() -> None:
    found = _result()["ratios"]
    assert (found["averaged"], found["weighted"]) == (3.0, 3.6)
    assert (found["memory_averaged"], found["memory_weighted"]) == (0.75, 0.5)
    assert (found["weighted_to_averaged"], found["int8_unet"], found["tiny_encoder"]) == (1.2, 2.0, 5.0)
    assert "int8_tiny" not in found and "published" not in found


def test_ratios_of_what_is_there() -> None:
    rows = {name: row for name, row in _result()["rows"].items() if name not in ("published", "int8")}
    assert set(ratios(rows)) == {"weighted_to_averaged", "tiny_encoder"}


def test_agreement() -> None:
    found = _result()["agreement"]
    assert found == {"averaged": 1.0, "weighted": 1.0, "int8": round(1 - 3 / 48, 6), "tiny": 1.0}


def test_growth() -> None:
    by_parts = growth_figures({f"weighted-{parts}": [_seconds(0.5 + parts / 100)] for parts in (2, 24, 77)})
    assert by_parts["weighted-2"] == 1020.0
    assert flatness(by_parts) == {"weighted": round(1.24 / 1.02 - 1, 4)}


def test_verdicts() -> None:
    told = {name: (found, word) for name, found, _, _, word in pipeline_page.verdicts(_result())}
    assert told["averaged"] == (3.0, "reached") and told["memory_averaged"] == (0.75, "reached")
    assert told["24_parts_weighted"] == (round(124 / 102 - 1, 4), "not reached")
    assert told["agreement_weighted"] == (1.0, "reached")
    assert told["int8_share"] == (0.8, "reached")
    assert not {"int8_tiny", "agreement_int8"} & set(told)


def test_page() -> None:
    text = pipeline_page.page({"sd21": _result()})
    assert "## SD-2.1-base's shapes" in text
    assert "| published form, PyTorch | 9000 | 8000 to 10000 | 0.11 |  | 8.00 GB |" in text
    assert "| ONNX Runtime, weighted maps | 2500 | 2500 to 2500 | 0.40 | 0.50 | 4.00 GB |" in text
    assert "| … weighted, int8 UNet, tiny encoder | not available: no tiny encoder |" in text
    assert "weighted 3.6 (wanted >= 3): reached" in text
    assert "| ms by parts | 2 | 24 |" in text and "| ONNX Runtime, weighted maps | 102 | 124 |" in text


def test_page_of_further_measurements() -> None:
    more = {
        "accuracy": figures({"weighted": {"car": 53.0, "face": 40.0}, "int8": {"car": 52.5, "face": 38.5}}, [0]),
        "triton": {"weighted": {"served_ms": 12.0, "process_ms": 10.0}},
        "sessions": {"served": {"ms": 10.0, "peak_gb": 0.2}},
    }
    text = pipeline_page.page({"embedded": _result("embedded") | more})
    assert "| … weighted, int8 UNet | 52.50 | 38.50 |" in text and "int8 UNet 1.50 (not reached)" in text
    assert "| ONNX Runtime, weighted maps | 12.0 | 10.0 | 2.0 |" in text
    assert "| served | 10.0 | 0.200 GB |" in text


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pipeline_page.plot({"sd21": _result(), "embedded": _result("embedded")}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_the_page_in_the_repository_is_of_its_figures() -> None:
    kept, shown = (ROOT / "docs" / f"performance.{ending}" for ending in ("json", "md"))
    assert shown.exists() == kept.exists()
    if kept.exists():
        assert shown.read_text() == pipeline_page.page(json.loads(kept.read_text()))
