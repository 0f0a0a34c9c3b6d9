"""The load benchmark on the real server with a toy segmenter: every kind of run, in seconds."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.load_repository import copied, export, target, without_batches
from benchmarks.load_server import SHARED_MEMORY
from toy import build_repository

from benchmarks import load, load_page

pytestmark = [pytest.mark.triton, pytest.mark.slow]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build_repository(tmp_path_factory.mktemp("load") / "repository")
    with (folder / "toy" / "config.pbtxt").open("a") as config:
        config.write('parameters { key: "image_size" value { string_value: "32" } }\n')
    return folder


@pytest.fixture(scope="module")
def result(repository: Path) -> dict[str, Any]:
    options = argparse.Namespace(
        repository=repository, segmenter=None, segmenters=None, maps="averaged", rounds=2, seconds=0.4,
        open_seconds=0.5, soak=40, soak_seconds=20.0, soak_only=False, json=None, page=None, plot=None,
    )  # fmt: skip
    return load._result(options)


def test_every_run_has_figures(result: dict[str, Any]) -> None:
    for row in (*result["closed"].values(), *result["open"].values(), result["overload"], result["one_by_one"]):
        assert row["requests"] > 0 and set(row["errors"]) <= {"DEADLINE_EXCEEDED"}
    assert result["closed"]["8"]["models"]["toy_unet"]["requests"] == result["closed"]["8"]["requests"]
    assert result["one_by_one"]["models"]["toy_unet"]["batch"] == 1
    assert result["ratios"]["unet_batch"] > 1
    assert result["ratios"]["latency_to_floor"]["ratio"] > 1


def test_the_soak_looks_at_every_process(result: dict[str, Any]) -> None:
    soak = result["soak"]
    assert soak["requests"] == 40 and not soak["errors"]
    own = {"preprocess", "vae_encoder", "toy_unet", "was", "tritonserver", "launch.py", SHARED_MEMORY.as_posix()}
    assert own <= set(soak["memory_mib"])
    assert all(each["end"] > 1 for each in soak["memory_mib"].values())


def test_the_page_can_be_written_from_the_file(result: dict[str, Any]) -> None:
    assert "toy_unet" in load_page.markdown(json.loads(json.dumps(result, allow_nan=False)))


def test_copies_leave_the_repository_alone(repository: Path) -> None:
    before = {path: path.read_bytes() for path in sorted(repository.rglob("*")) if path.is_file()}
    with without_batches(repository) as copy:
        unet = (copy / "toy_unet" / "config.pbtxt").read_text()
        assert "max_batch_size: 1\n" in unet and " batch_size: 1 " in unet and " batch_size: 2 " not in unet
        assert "max_batch_size: 0\n" in (copy / "was" / "config.pbtxt").read_text()
    with copied(repository) as copy:
        assert (copy / "toy" / "config.pbtxt").samefile(repository / "toy" / "config.pbtxt")
    assert before == {path: path.read_bytes() for path in sorted(repository.rglob("*")) if path.is_file()}


def test_what_is_there_is_not_exported_again(repository: Path) -> None:
    export(None, repository, "toy")
    assert target(repository, "toy") == ("toy", None)
    with pytest.raises(load.BenchmarkError, match="serves no bicycle"):
        target(repository, "bicycle")
