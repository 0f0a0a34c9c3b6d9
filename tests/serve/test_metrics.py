"""Metrics count what happened, by segmenter and version, and go on after a reload; the launcher's own; who may ask."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from asking import picture, refused
from prometheus_client.parser import text_string_to_metric_families
from tritonclient import grpc

from processes import server_of, stubs_of
from serving import Served, metrics, png, served, stop_and_read
from slime_repository import config

pytestmark = pytest.mark.triton
TOY = '{segmenter="toy",version="1"}'


def grown(before: dict[str, float], after: dict[str, float], name: str) -> float:
    return after[name] - before.get(name, 0.0)


def status(address: str, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.05)
    return holds()


def test_counted(toy_repository: Path) -> None:
    # The launcher's probes are requests too.
    with served(toy_repository, "--probe", "3600") as server:
        server.segment("toy", png(picture(20, 30)))
        before = metrics(server)
        for _ in range(3):
            server.segment("toy", png(picture(200, 300)))
        # Triton counts an ensemble's request after it has sent the answer.
        counted = 'nv_inference_count{model="toy",version="1"}'
        assert eventually(lambda: grown(before, metrics(server), counted) >= 3)
        after = metrics(server)
    assert grown(before, after, counted) == 3
    assert grown(before, after, f"slime_masks_total{TOY}") == 3
    assert 0 < grown(before, after, f"slime_margin_total{TOY}") <= 3
    assert 0 <= grown(before, after, f"slime_foreground_total{TOY}") <= 3
    assert grown(before, after, f"slime_request_seconds_count{TOY}") == 3
    assert 0 < grown(before, after, f"slime_request_seconds_sum{TOY}") < 60
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
    assert grown(before, metrics(toy_server), f"slime_masks_total{TOY}") == 1


def test_a_new_version_is_told_and_counted_as_such(toy_repository: Path, tmp_path: Path) -> None:
    repository = Path(shutil.copytree(toy_repository, tmp_path / "repository"))
    written = repository / "toy" / "config.pbtxt"
    with (
        served(repository, "--probe", "3600", "--log-format", "json") as server,
        grpc.InferenceServerClient(server.grpc) as client,
    ):
        assert metrics(server)['slime_live_version{form="baked",segmenter="toy"}'] == 1
        # As publishing does it: on trial under a name of its own, then for all.
        trial = {**client.get_model_config("toy", as_json=True)["config"], "name": "toy.next"}
        client.load_model("toy.next", config=json.dumps(trial), files={"file:1/version": b"1"})
        server.segment("toy.next", png(picture(20, 30)))
        (repository / "toy" / "2").mkdir()
        written.write_text(config.with_parameter(written.read_text(), "version", "2"))
        client.load_model("toy")
        server.segment("toy", png(picture(20, 30)))
        found = metrics(server)
        assert found['slime_masks_total{segmenter="toy",version="2"}'] == 1
        assert not [name for name in found if ".next" in name]
        assert eventually(lambda: metrics(server)['slime_live_version{form="baked",segmenter="toy"}'] == 2)
        client.unload_model("toy")
        assert eventually(lambda: not [name for name in metrics(server) if "live_version" in name])
        lines = [json.loads(line) for line in stop_and_read(server.launcher).splitlines()]
    assert {(each["level"], each["message"]) for each in lines} >= {
        ("info", "segmenter toy: version 2 serves now (version 1 before), baked"),
        ("info", "segmenter toy: serves no more"),
    }
    assert all(each["time"].startswith("20") for each in lines)


def test_the_launchers_metrics_and_health(toy_repository: Path) -> None:
    """On the address that is asked for, and nowhere else; also while the server is being started again."""
    with served(toy_repository, "--listen-http", "127.0.0.2") as server:
        assert server.metrics.startswith("127.0.0.2:") and server.http.startswith("127.0.0.1:")
        before = metrics(server)
        assert [before["slime_ready"], before["slime_server_restarts_total"]] == [1, 0]
        assert [status(server.metrics, path) for path in ("/v2/health/ready", "/v2/health/live")] == [200, 200]
        # Neither images nor what changes the server.
        for path in ("/v2/models/toy/infer", "/v2/repository/index", "/v2/models/stats", "/"):
            assert status(server.metrics, path) == 404
        with pytest.raises(OSError, match="refused"):
            status(f"127.0.0.1:{server.metrics.rpartition(':')[2]}", "/metrics")
        os.kill(stubs_of(server.launcher.pid)["was"][0], signal.SIGKILL)
        assert before['slime_model_reloads_total{model="was"}'] == 0
        assert eventually(lambda: metrics(server)['slime_model_reloads_total{model="was"}'] == 1)
        os.kill(server_of(server.launcher.pid), signal.SIGKILL)
        assert eventually(lambda: status(server.metrics, "/v2/health/ready") == 503)
        assert metrics(server)["slime_server_restarts_total"] == 1
        assert eventually(lambda: status(server.metrics, "/v2/health/ready") == 200)
        assert server.segment("toy", png(picture(20, 30))).shape == (20, 30)
        with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=10) as answer:
            families = {family.name: family for family in text_string_to_metric_families(answer.read().decode())}
        assert families["slime_request_seconds"].type == "histogram"
        assert families["nv_inference_request_summary_us"].type == "summary"
        error = stop_and_read(server.launcher)
    assert f" warning: metrics and health go out in plain text, to whoever reaches {server.metrics}\n" in error
    assert "serves no more" not in error and "serves now" not in error
    assert " warning: model was: its process" in error and " error: server: ended with code" in error
