"""What a launch changes in the configurations: processes by the machine or as asked, a cache where it is right."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import in_process, picture
from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient import grpc
from tritonclient.grpc import model_config_pb2

from processes import descendants
from serving import png, served
from slime_repository import contents
from slime_serve import ServerSettings, UsageError, placement
from slime_serve.placement import View


def changed(folder: Path, **settings: object) -> dict[str, Any]:
    asked = ServerSettings(repository=folder, **settings)  # type: ignore[arg-type]
    configs = placement.overrides(contents.read(folder), asked, {})
    return {name: text_format.Parse(text, model_config_pb2.ModelConfig()) for name, text in configs.items()}


@pytest.mark.parametrize(("cores", "count"), [(1, 1), (4, 1), (8, 2), (16, 4), (96, 4)])
def test_processes_follow_the_cores(
    toy_repository: Path, monkeypatch: pytest.MonkeyPatch, cores: int, count: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(cores)))
    counts = {model: config.instance_group[0].count for model, config in changed(toy_repository).items()}
    expected = {"preprocess": count, "was": max(count, min(cores, 2))}
    assert counts == {model: each for model, each in expected.items() if each > 1}


def test_what_is_asked_for_wins(toy_repository: Path) -> None:
    configs = changed(toy_repository, instances={"toy_unet": 3})
    assert configs["toy_unet"].instance_group[0].count == 3


def test_only_encoders_are_cached(toy_repository: Path) -> None:
    configs = changed(toy_repository, response_cache=1_000_000)
    assert [name for name, config in configs.items() if config.response_cache.enable] == ["vae_encoder"]


def test_clients_are_told_what_was_measured_and_no_queue_has_a_time_limit(toy_repository: Path) -> None:
    found = contents.read(toy_repository)
    old = model_config_pb2.ModelConfig()
    old.CopyFrom(found.configs["vae_encoder"])
    old.dynamic_batching.default_queue_policy.default_timeout_microseconds = 5_000_000
    old.dynamic_batching.default_queue_policy.max_queue_size = 16
    found = replace(found, configs={**found.configs, "vae_encoder": old})
    configs = placement.overrides(found, ServerSettings(repository=toy_repository), {"toy": 9.87654})
    read = {name: text_format.Parse(text, model_config_pb2.ModelConfig()) for name, text in configs.items()}
    assert read["toy"].parameters["image_seconds"].string_value == "9.88"
    policy = read["vae_encoder"].dynamic_batching.default_queue_policy
    assert (policy.default_timeout_microseconds, policy.max_queue_size) == (0, 16)


def test_the_server_sees_what_is_changed_and_then_the_repository(toy_repository: Path, tmp_path: Path) -> None:
    found = contents.read(toy_repository)
    own = {path: path.read_bytes() for path in toy_repository.rglob("*") if path.is_file()}
    view = View(tmp_path)
    for count in (3, 2):  # also where something was shown before
        settings = ServerSettings(repository=toy_repository, instances={"was": count})
        view.change(found, placement.overrides(found, settings, {}))
        seen = contents.read(view.path)
        assert (seen.segmenters, seen.parts) == (found.segmenters, found.parts)
        assert seen.configs["was"].instance_group[0].count == count
        assert seen.configs["toy_unet"] == found.configs["toy_unet"]
        assert (view.path / "was" / "1" / "model.py").samefile(toy_repository / "was" / "1" / "model.py")
    view.settle(found)
    assert view.path.samefile(toy_repository)
    assert own == {path: path.read_bytes() for path in toy_repository.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "settings", [{"instances": {"bicycle": 2}}, {"instances": {"was": 0}}, {"response_cache": -1},
                 {"trace_otlp": "collector"}, {"trace_every": 0}]
)  # fmt: skip
def test_refused(toy_repository: Path, settings: dict[str, object]) -> None:
    with pytest.raises(UsageError) as caught:
        changed(toy_repository, **settings)
    assert "\n" not in str(caught.value)


@contextmanager
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """Takes traces: its URL, and what came."""
    came: list[bytes] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", came
        server.shutdown()


@pytest.mark.triton
def test_cache_instances_and_traces(toy_repository: Path) -> None:
    """The same image again: the encoder does not run, and the mask is the same; another image gets its own."""
    images = [picture(40, 50), picture(60, 30, seed=1)]
    with collector() as (url, came):
        options = (
            "--response-cache",
            "10000000",
            "--instances",
            "preprocess=2",
            "--trace-otlp",
            url,
            "--trace-every",
            "1",
        )
        with served(toy_repository, *options) as server:
            processes = [Path(f"/proc/{pid}/cmdline").read_text() for pid in descendants(server.launcher.pid)]
            assert sum("/preprocess/" in each for each in processes) == 2
            for image in images * 3:
                mask = server.segment("toy", png(image))
                assert np.array_equal(mask, in_process(toy_repository, image)[0])
            with grpc.InferenceServerClient(server.grpc) as client:
                (encoder,) = client.get_inference_statistics("vae_encoder").model_stats
            assert encoder.inference_stats.cache_hit.count >= 4
            deadline = time.monotonic() + 20
            while not came and time.monotonic() < deadline:
                time.sleep(0.1)
        assert any(b"vae_encoder" in each for each in came)
