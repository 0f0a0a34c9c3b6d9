"""Our metrics stand beside Triton's own, count what happened, and go on after a reload."""

from __future__ import annotations

from pathlib import Path

import pytest
from asking import picture, refused
from tritonclient import grpc

from serving import Served, metrics, png, served

pytestmark = pytest.mark.triton


def grown(before: dict[str, float], after: dict[str, float], name: str) -> float:
    return after[name] - before.get(name, 0.0)


def test_counted(toy_repository: Path) -> None:
    # The launcher's probes are requests too.
    with served(toy_repository, "--probe", "3600") as server:
        server.segment("toy", png(picture(20, 30)))
        before = metrics(server)
        for _ in range(3):
            server.segment("toy", png(picture(200, 300)))
        after = metrics(server)
    assert grown(before, after, 'slime_masks_total{model="was"}') == 3
    assert 0 < grown(before, after, 'slime_margin_total{model="was"}') <= 3
    assert 0 <= grown(before, after, 'slime_foreground_total{model="was"}') <= 3
    assert grown(before, after, 'nv_inference_count{model="toy",version="1"}') == 3
    for model, stage in (("preprocess", "decode"), ("preprocess", "fit"), ("was", "weight"), ("was", "segment")):
        assert grown(before, after, f'slime_stage_seconds_total{{model="{model}",stage="{stage}"}}') > 0


def test_refused_images(toy_server: Served) -> None:
    name = 'slime_decode_failures_total{model="preprocess"}'
    before = metrics(toy_server)
    refused(toy_server, b"no image")
    assert grown(before, metrics(toy_server), name) == 1


def test_after_a_reload(toy_server: Served) -> None:
    with grpc.InferenceServerClient(toy_server.grpc) as client:
        client.unload_model("was")
        client.load_model("toy")
    before = metrics(toy_server)
    toy_server.segment("toy", png(picture(20, 30)))
    assert grown(before, metrics(toy_server), 'slime_masks_total{model="was"}') == 1
