"""Requests while versions come, go back and leave, on the real server: as benchmarks/publishing.py, but smaller."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.publishing.__main__ import new_names
from benchmarks.publishing.run import Run, spread_evenly
from benchmarks.publishing.variants import Answer, Watched, ask, exported
from tritonclient import grpc

from backbones import build
from serving import served
from slime_export.publish.server_control import Server
from slime_optimize.backbone import load_backbone
from slime_repository import listing
from slime_repository.manifest import verify

pytestmark = [pytest.mark.triton, pytest.mark.slow]


@pytest.mark.parametrize("embedding", ["baked", "shared"])
def test_no_request_is_lost(tmp_path: Path, embedding: str) -> None:
    variants, _ = exported(tmp_path, 2, load_backbone(build(tmp_path / "backbone", "sd15")), embedding)
    repository = tmp_path / "repository"
    variants[0].publish(repository, "first", None)
    with served(repository) as server:
        run = Run(repository, variants, Watched(server.grpc))
        run.start()
        answers = run.under_load(publishes=4, rollbacks=2, requests=40)
        assert run.wrong(answers) == []
        assert len(answers) >= 40
        assert {answer.version for answer in answers} >= {2, 7}
        assert [row.state for row in listing.rows(repository, Server(server.grpc).states())] == ["ready", "ready"]
        new_names(run, 1)
        assert sorted(row.name for row in listing.rows(repository)) == ["car", "first"]
        assert "new-0" not in run.watched.states()
        with grpc.InferenceServerClient(server.grpc) as client:
            assert ask(client, "first", variants[0]).has(variants[0].check.mask_HW)
    assert verify(repository)
    # What is taken for wrong: an error, a version of before, and the mask of another version.
    late, swapped = answers[-1], run.contents[7].check.mask_HW
    other = next(each for each in variants if each is not run.contents[7]).check.mask_HW
    assert run.wrong([Answer(begun=late.begun, ended=late.ended, version=1, mask_HW=swapped)])
    assert run.wrong([Answer(begun=late.begun, ended=late.ended, version=7, mask_HW=other)])
    assert run.wrong([Answer(begun=0.0, ended=1.0, error="gone")]) == ["gone"]


def test_changes_are_spread() -> None:
    kinds = spread_evenly(20, 5)
    assert (kinds.count("publish"), kinds.count("rollback")) == (20, 5)
    assert kinds[:3] == ["publish", "publish", "rollback"]
