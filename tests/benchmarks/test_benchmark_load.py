"""The load benchmarks on the real server, in seconds: a toy segmenter for load and recovery, the embedded backbone for
the shared form and for publishing."""

from __future__ import annotations

import argparse
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from benchmarks.common.served_repository import copied, export, target, without_batches
from benchmarks.common.server import SHARED_MEMORY
from benchmarks.common.sides import BenchmarkError
from benchmarks.load import recovery, shared, spread
from benchmarks.publishing.run import spread_evenly
from toy import build_repository, described_repository

from slime_repository.config import parsed

load = import_module("benchmarks.load.__main__")
publishing = import_module("benchmarks.publishing.__main__")
pytestmark = [pytest.mark.triton, pytest.mark.slow]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build_repository(tmp_path_factory.mktemp("load") / "repository")
    with (folder / "toy" / "config.pbtxt").open("a") as config:
        config.write('parameters { key: "image_size" value { string_value: "32" } }\n')
    return folder


@pytest.mark.alone
def test_load(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 500 requests that overlap none waits half a second: with a limit of the encoder's queue, four did."""
    monkeypatch.setattr(load, "OVERLAPS", 250)
    options = argparse.Namespace(
        repository=repository, segmenters=None, rounds=2, seconds=0.4, open_seconds=0.5, soak=40, soak_seconds=20.0,
        soak_only=False, json=None,
    )  # fmt: skip
    result = load.measure(options)
    for row in (*result["closed"].values(), *result["open"].values(), result["overload"], result["one_by_one"]):
        assert row["requests"] > 0 and set(row["errors"]) <= {"DEADLINE_EXCEEDED"}
    # The launcher's own probes of a busy server are counted as well.
    assert result["closed"]["8"]["models"]["toy_unet"]["requests"] >= result["closed"]["8"]["requests"]
    assert result["one_by_one"]["models"]["toy_unet"]["batch"] == 1
    assert result["ratios"]["unet_batch"] > 1
    assert result["ratios"]["overlaps_late"] == 0
    assert result["ratios"]["latency_to_floor"]["ratio"] > 1
    soak = result["soak"]
    assert soak["requests"] == 40 and not soak["errors"]
    own = {"preprocess", "vae_encoder", "toy_unet", "was", "tritonserver", "launch.py", SHARED_MEMORY.as_posix()}
    assert own <= set(soak["memory_mib"])
    assert all(each["end"] > 1 for each in soak["memory_mib"].values())
    assert "toy_unet" in load.page(json.loads(json.dumps(result, allow_nan=False)))


@pytest.mark.alone
def test_spread(tmp_path: Path) -> None:
    repository = described_repository(tmp_path / "repository")
    with (repository / "toy" / "config.pbtxt").open("a") as config:
        config.write('parameters { key: "image_size" value { string_value: "32" } }\n')
    result = spread.measure(repository, "toy", rounds=1, seconds=0.5)
    assert all(figure > 0 for pair in (*result["alone"][0], *result["together"]) for figure in pair)
    assert result["ratio"] > 0 and result["cpu_ratio"] > 0
    assert f"{result['ratio']:.2f} of the sum" in spread.page(json.loads(json.dumps(result)))


def test_copies_leave_the_repository_alone(repository: Path) -> None:
    before = {path: path.read_bytes() for path in sorted(repository.rglob("*")) if path.is_file()}
    with without_batches(repository) as copy:
        unet = parsed((copy / "toy_unet" / "config.pbtxt").read_text())
        assert unet.max_batch_size == 1 and {each.batch_size for each in unet.model_warmup} == {1}
        assert parsed((copy / "was" / "config.pbtxt").read_text()).max_batch_size == 0
    with copied(repository) as copy:
        assert (copy / "toy" / "config.pbtxt").samefile(repository / "toy" / "config.pbtxt")
    assert before == {path: path.read_bytes() for path in sorted(repository.rglob("*")) if path.is_file()}


def test_what_is_there_is_not_exported_again(repository: Path) -> None:
    export(None, repository, "toy")
    assert target(repository, "toy") == ("toy", None)
    with pytest.raises(BenchmarkError, match="serves no bicycle"):
        target(repository, "bicycle")


@pytest.mark.alone
def test_recovery(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "CALM_S", 0.3)
    monkeypatch.setattr(recovery, "SETTLED_S", 1.0)
    result = recovery.measure(repository, "toy", rounds=1)
    assert set(result["rows"]) == {"preprocess", "vae_encoder", "toy_unet", "was", recovery.SERVER}
    for row in result["rows"].values():
        assert row["wrong"] == 0 and 0 < row["longest_s"] < recovery.PATIENCE_S
    assert result["rows"][recovery.SERVER]["failed"], "the server was killed and nobody noticed"
    assert all(name in recovery.page(result) for name in result["rows"])


def test_shared(tmp_path: Path) -> None:
    words = ["--work", str(tmp_path), "--pairs", "2", "--rounds", "1", "--seconds", "0.4", "--count", "3"]
    result = shared.measure(shared._arguments([*words, "--timed", "2", "--baked", "1", "--no-whole"]))
    assert result["many"]["answered"] == 3 and result["many"]["timed"] == 2
    assert result["baked"]["count"] == 1 and result["compared"]["latency_ratio"]["pairs"] == 2
    assert result["mixed"]["names"] == {"one": 1, "mixed": 3, "different": 3}
    assert "| shared | 2 |" in shared.page(json.loads(json.dumps(result, allow_nan=False)))


def test_publishing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures; tests/export/test_export_under_load.py takes the same steps in both forms."""
    monkeypatch.setattr(publishing, "SETTLED_S", 0.1)
    options = argparse.Namespace(requests=10, publishes=2, rollbacks=1, new_names=1)
    result: dict[str, Any] = publishing.measured("baked", publishing.load_backbone("embedded"), options)
    assert result["requests"] >= 10 and not result["examples"]
    assert (result["publish_to_return_s"]["count"], result["rollback_to_return_s"]["count"]) == (2, 1)
    assert result["publish_to_first_answer_s"]["count"] >= 1  # on a slow machine the next change may come first
    assert result["remove_s"]["count"] == 1


def test_rollbacks_are_spread() -> None:
    assert spread_evenly(4, 2) == ["publish", "publish", "rollback", "publish", "publish", "rollback"]
