"""The recovery benchmark on the real server with a toy segmenter: each process killed once."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.recovery import SERVER, measure, page
from toy import build_repository

from benchmarks import recovery

pytestmark = [pytest.mark.triton, pytest.mark.slow]


def test_every_process_is_killed_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "CALM_S", 0.3)
    monkeypatch.setattr(recovery, "SETTLED_S", 1.0)
    repository = build_repository(tmp_path / "repository")
    with (repository / "toy" / "config.pbtxt").open("a") as config:
        config.write('parameters { key: "image_size" value { string_value: "32" } }\n')
    result = measure(repository, "toy", rounds=1)
    assert set(result["rows"]) == {"preprocess", "vae_encoder", "toy_unet", "was", SERVER}
    for row in result["rows"].values():
        assert row["wrong"] == 0 and 0 < row["longest_s"] < recovery.PATIENCE_S
    assert result["rows"][SERVER]["failed"], "the server was killed and nobody noticed"
    assert all(name in page(result) for name in result["rows"])
