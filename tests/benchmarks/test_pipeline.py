"""The pipeline benchmark runs on a tiny backbone: files are made and kept, sides answer, figures come out."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.pipeline_exports import Exports, MissingError
from benchmarks.pipeline_onnx import Served
from benchmarks.pipeline_side import STAGES, serve
from benchmarks.pipeline_torch import KINDS
from benchmarks.pipeline_triton import Triton

import backbones
from benchmarks import pipeline, pipeline_exports
from slime_optimize import load_backbone


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return backbones.build(tmp_path_factory.mktemp("pipeline") / "sd15")


@pytest.fixture(scope="module")
def exports(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return Exports.of(load_backbone(folder), tmp_path_factory.mktemp("work"))


def _answers(variant: Any, tmp_path: Path, **more: Any) -> list[dict[str, Any]]:
    orders = [{"batch": 1, "side": 64}, {"batch": 2, "side": 96}, {"save": str(tmp_path / "masks.npy")}, more]
    told = io.StringIO()
    serve(variant, io.StringIO("".join(json.dumps(each) + "\n" for each in orders if each)), told)
    return [json.loads(line) for line in told.getvalue().splitlines()]


def _options(**changes: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"device": "cpu", "threads": 1, "session": "served"} | changes)


def _masks(variant: Any, tmp_path: Path, **more: Any) -> tuple[Any, list[dict[str, Any]]]:
    ready, one, two, saved, *rest = _answers(variant, tmp_path, **more)
    assert ready["device"] == "cpu" and ready["threads"] == 1 and ready["loaded_bytes"] > 1e7
    for each in (one, two):
        assert set(each["seconds"]) == {*STAGES, "total"} and each["seconds"]["unet"] > 0
        assert sum(each["seconds"][stage] for stage in STAGES) <= each["seconds"]["total"]
    assert rest[-1]["peak_bytes"] >= ready["loaded_bytes"]
    masks = np.load(saved["saved"])
    assert masks.shape == (3, 64, 64) and masks.max() < 5
    return masks, rest


def test_exact_variants_give_the_same_masks(exports: Exports, tmp_path: Path) -> None:
    segmenter = exports.segmenter("5")
    ours = KINDS["torch"](_options(segmenter=segmenter, backbone=None))
    expected, (counted, _) = _masks(ours, tmp_path, count=True)
    assert counted["macs"] > exports.made("weighted", "5")["macs"]  # it runs the whole UNet
    for form in ("averaged", "weighted"):
        paths = {"encoder": exports.made("encoder", "5")["path"], "unet": exports.made(form, "5")["path"]}
        for session in ("served", "no arena"):
            masks, _ = _masks(Served(_options(**paths, session=session)), tmp_path)
            assert float((masks == expected).mean()) > 0.999


@pytest.mark.triton
def test_behind_the_server(exports: Exports, tmp_path: Path) -> None:
    paths = {"encoder": Path(exports.made("encoder", "5")["path"]), "unet": Path(exports.made("averaged", "5")["path"])}
    expected, _ = _masks(Served(_options(**paths)), tmp_path)
    behind = Triton(_options(**paths))
    try:
        masks, _ = _masks(behind, tmp_path)
    finally:
        behind.close()
    assert float((masks == expected).mean()) > 0.999
    assert not list(exports.folder.glob("tmp*"))


def test_published_form(exports: Exports, tmp_path: Path) -> None:
    _masks(KINDS["published"](_options(segmenter=exports.segmenter("5"), backbone=None)), tmp_path)


def test_files_are_made_once_and_whole(exports: Exports, monkeypatch: pytest.MonkeyPatch) -> None:
    first = exports.made("encoder", "5")
    written = Path(first["path"]).stat().st_mtime_ns
    assert exports.made("encoder", "7") == first and Path(first["path"]).stat().st_mtime_ns == written

    def failing(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("slime_export.graph.onnx_export.write", failing)
    with pytest.raises(OSError, match="disk full"):
        exports.made("averaged", "3")
    assert not (exports.folder / "averaged-3").exists()


def test_missing_forms_are_told(exports: Exports) -> None:
    with pytest.raises(MissingError, match="has no tiny_vae"):
        exports.made("tiny_encoder", "5")


def test_other_code_or_weights_mean_other_files(exports: Exports, monkeypatch: pytest.MonkeyPatch) -> None:
    before = pipeline_exports._key(exports.backbone)
    assert exports.folder.name == before
    monkeypatch.setattr(pipeline_exports, "_DECISIVE", ("benchmarks.watch", "no.such.module"))
    assert pipeline_exports._key(exports.backbone) != before


@pytest.mark.slow
@pytest.mark.parametrize("large", [False, True], ids=["resident", "in turns"])
def test_the_whole_benchmark(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool) -> None:
    if large:
        monkeypatch.setattr(pipeline, "_LARGE", 0)
    words = ["--backbone", str(folder), "--rounds", "1", "--batches", "1", "2", "--threads", "1", "--parts", "3"]
    kept = tmp_path / "kept.json"
    variants = ["--variants", "published", "torch", "weighted", "tiny"]
    assert pipeline.main([*words, *variants, "--work", str(tmp_path), "--json", str(kept)]) == 0
    result = json.loads(kept.read_text())["sd15"]
    assert set(result["rows"]) == {"published", "torch", "weighted"} and "tiny_vae" in result["missing"]["tiny"]
    assert result["agreement"]["weighted"] > 0.999 and result["resident"] != large
    assert result["rows"]["weighted"]["peak_gb"] < result["rows"]["published"]["peak_gb"]
    assert set(result["rows"]["torch"]["images_per_second"]) == {"1", "2"}
    assert result["machine"]["versions"]["onnxruntime"]
