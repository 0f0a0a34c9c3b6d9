"""What the container is made of, as far as that can be tried without one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from toy import READING, add_segmenter
from tritonclient import http

from processes import stubs_of
from serving import ROOT, Served, served

SERVE = ROOT / "serve"


def health(address: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-S", os.fspath(SERVE / "health.py"), address]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.triton
def test_health_is_an_answer(toy_server: Served) -> None:
    done = health(toy_server.http)
    assert (done.returncode, done.stdout) == (0, "healthy: toy\n")


@pytest.mark.triton
def test_ready_is_not_healthy(toy_repository: Path) -> None:
    with served(toy_repository) as server:
        stubs = stubs_of(server.launcher.pid)
        os.kill(server.launcher.pid, signal.SIGSTOP)  # Nobody puts it right.
        try:
            for stub in stubs["was"]:
                os.kill(stub, signal.SIGKILL)
            assert health(server.http).returncode == 1
        finally:
            os.kill(server.launcher.pid, signal.SIGCONT)


@pytest.mark.triton
def test_health_costs_one_answer_at_most(toy_repository: Path, tmp_path: Path) -> None:
    """Of the segmenter that was asked longest ago; where an image is dear, of none while an answer is fresh."""
    repository = Path(shutil.copytree(toy_repository, tmp_path / "repository"))
    add_segmenter(repository, "second", replace(READING, channel_order="bgr"))
    with served(repository, "--probe", "1000") as server, http.InferenceServerClient(server.http) as client:

        def answers() -> int:
            (statistics,) = client.get_inference_statistics("was")["model_stats"]
            return int(statistics["inference_stats"]["success"]["count"])

        before = answers()
        assert {health(server.http).stdout for _ in range(2)} == {"healthy: toy\n", "healthy: second\n"}
        assert answers() == before + 2
        for name in ("toy", "second"):
            config = client.get_model_config(name)
            config["parameters"]["image_seconds"] = {"string_value": "10"}
            client.load_model(name, config=json.dumps(config))
        assert health(server.http).stdout.startswith("healthy: answered ")
        assert answers() == before + 2


def test_nobody_there() -> None:
    done = health("127.0.0.1:9")
    assert done.returncode == 1
    assert done.stderr.startswith("unhealthy: ConnectionRefusedError")


def arguments(tmp_path: Path, *secrets: str) -> list[str]:
    """What the entry point starts tritonserver with."""
    for name in secrets:
        (tmp_path / name).write_text("k" * 32 + "\n")
    environment = {**os.environ, "SLIME_SECRETS": os.fspath(tmp_path), "SLIME_TRITON": "echo"}
    done = subprocess.run(
        [SERVE / "entrypoint.sh", "--id=x"], capture_output=True, text=True, env=environment, check=True
    )
    return done.stdout.split()


def test_entry_point(tmp_path: Path) -> None:
    plain = arguments(tmp_path)
    assert "--id=x" in plain
    assert "--http-address=127.0.0.1" in plain
    assert "--metrics-address=127.0.0.1" in plain
    assert "--model-control-mode=poll" in plain
    assert not [each for each in plain if "ssl" in each]
    keys = {each.rpartition("=")[2] for each in plain if "restricted" in each}
    assert len(keys) == 1 and len(keys.pop()) == 64
    assert arguments(tmp_path) != plain, "the key is the same again"


def test_entry_point_with_secrets(tmp_path: Path) -> None:
    given = arguments(tmp_path, "tls.pem", "tls.key", "tls-ca.pem", "admin-key")
    assert f"--grpc-server-cert={tmp_path}/tls.pem" in given
    assert f"--grpc-root-cert={tmp_path}/tls-ca.pem" in given
    assert "--grpc-use-ssl-mutual=true" in given
    assert f"--grpc-restricted-protocol=model-repository,shared-memory,trace,logging:slime-key={'k' * 32}" in given


def test_compose() -> None:
    service: dict[str, Any] = yaml.safe_load((SERVE / "compose.yaml").read_text())["services"]["slime"]
    assert service["read_only"] and service["shm_size"] and service["cap_drop"] == ["ALL"]
    assert all(each.endswith(":ro") for each in service["volumes"])
    assert service["ports"] == ["127.0.0.1:8001:8001"]
