"""What the container is made of, as far as that can be tried without one."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from http import server as http_server
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from asking import picture
from toy import READING, add_segmenter, described_repository
from tritonclient import http

import slime_client
from container import ENTRY, contained
from processes import stubs_of
from serving import ROOT, Served, png, served
from slime_export.errors import ServerError
from slime_export.publish.server_control import Server as Publisher
from slime_serve import Security

SERVE = ROOT / "serve"
KEY = "k" * 32
NOBODY = 1000

specification = importlib.util.spec_from_file_location("entry", ENTRY)
assert specification and specification.loader
entry = importlib.util.module_from_spec(specification)
specification.loader.exec_module(entry)


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of secrets; the server's certificate is its client's too."""
    folder = tmp_path_factory.mktemp("secrets")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "tls-ca.pem")
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(folder / "tls.key")
    issued.cert_chain_pems[0].write_to_path(folder / "tls.pem")
    (folder / "admin-key").write_text(f"{KEY}\n")
    return folder


def health(address: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-S", os.fspath(SERVE / "health.py"), *options, address]
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


def arguments(folder: Path, **environment: str) -> list[str]:
    """What the entry point starts tritonserver with."""
    given = {"SLIME_REPOSITORY": os.fspath(folder), "SLIME_SECRETS": os.fspath(folder), **environment}
    return entry.arguments(given, ["--id=x"])


def secrets_in(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text(f"{KEY}\n" if name == "admin-key" else "-----BEGIN …")


def test_entry_point(tmp_path: Path) -> None:
    plain = arguments(tmp_path)
    assert (plain[0], plain[-1]) == ("tritonserver", "--id=x")
    assert "--http-address=127.0.0.1" in plain
    assert "--metrics-address=127.0.0.1" in plain
    assert {"--model-control-mode=explicit", "--load-model=*"} <= {*plain}
    assert not [each for each in plain if "ssl" in each]
    keys = {each.rpartition("=")[2] for each in plain if "restricted" in each}
    assert len(keys) == 1 and entry.KEY.fullmatch(keys.pop())
    assert arguments(tmp_path) != plain, "the key is the same again"


def test_entry_point_with_secrets(tmp_path: Path) -> None:
    """It asks for what the launcher asks for, which is not in the container."""
    secrets_in(tmp_path, "tls.pem", "tls.key", "tls-ca.pem", "admin-key")
    files = {"tls_cert": "tls.pem", "tls_key": "tls.key", "tls_ca": "tls-ca.pem", "admin_key_file": "admin-key"}
    security = Security(**{name: tmp_path / file for name, file in files.items()})
    assert {*security.arguments(security.key())} <= {*arguments(tmp_path)}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("tls.pem",), "has one of tls.pem and tls.key"),
        (("tls-ca.pem",), "has tls-ca.pem alone"),
        (("tls.pem", "tls.key"), "is not in PEM form"),
        (("admin-key",), "got 4 characters, expected 16 to 512"),
        ((), "repository .*: cannot be read"),
    ],
)
def test_entry_point_refuses(tmp_path: Path, names: tuple[str, ...], said: str) -> None:
    for name in names:
        (tmp_path / name).write_text("no\n,")
    environment = {"SLIME_REPOSITORY": f"{tmp_path}/{'' if names else 'none'}", "SLIME_SECRETS": os.fspath(tmp_path)}
    command = [sys.executable, "-S", os.fspath(SERVE / "entry.py")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=60)
    error = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and re.match(f"error: .*{said}", error), done.stderr


class FakeTriton(http_server.BaseHTTPRequestHandler):
    """Answers what health.py asks, as a Triton of this version whose models are in this state."""

    version, dead, full, silent_s = "2.75.0", "", False, 3600.0

    def do_GET(self) -> None:
        model = self.path.split("/")[3] if self.path.startswith("/v2/models/") else ""
        steps = [{"model_name": name, "model_version": 1} for name in ("preprocess", "toy_unet", "was")]
        if self.path.endswith("/ready"):
            self._say(400 if model == self.dead else 200, None)
        elif self.path == "/v2":
            self._say(200, {"version": self.version})
        elif self.path == "/v2/models/stats":
            success = {"success": {"count": 1, "ns": 10**8}}
            last = {"toy": 0, "preprocess": 0, "toy_unet": 0, "was": int((time.time() - self.silent_s) * 1000)}
            models = [{"name": name, "last_inference": at, "inference_stats": success} for name, at in last.items()]
            self._say(200, {"model_stats": models})
        elif model == "toy":
            ensemble = {"platform": "ensemble", "ensemble_scheduling": {"step": steps}, "input": [{"name": "IMAGE"}]}
            self._say(200, {"name": "toy", **ensemble})
        else:
            self._say(200, {"name": model})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._say(503, {"error": "Exceeds maximum queue size: 24 images are under way"}) if self.full else self._say(
            200, {"outputs": [{"shape": [8, 8]}]}
        )

    def _say(self, status: int, content: object) -> None:
        data = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.mark.parametrize(
    ("state", "option", "said"),
    [
        ({}, "--ready", "healthy: every model is ready\n"),
        ({"dead": "was"}, "--ready", "unhealthy"),
        ({}, "", "healthy: toy\n"),
        # An older Triton calls a dead process ready: it is asked for a mask.
        ({"version": "2.66.0", "dead": "was"}, "--ready", "healthy: toy\n"),
        # Busy is not ill, as long as others get their masks.
        ({"full": True, "silent_s": 1.0}, "", "healthy: answered "),
        ({"full": True}, "", "unhealthy"),
    ],
)
def test_health_by_version_and_state(state: dict[str, Any], option: str, said: str) -> None:
    handler = type("Handler", (FakeTriton,), state)
    with http_server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = health(f"127.0.0.1:{server.server_port}", *filter(None, [option]))
        server.shutdown()
    assert (done.stdout or done.stderr).startswith(said), done
    assert done.returncode == said.startswith("unhealthy")


@pytest.mark.triton
def test_the_container_serves_over_mutual_tls_with_a_key(pem: Path, tmp_path: Path) -> None:
    """From a repository that was made before there were manifests, which stays as it is."""
    repository = described_repository(tmp_path / "models")
    before = contents(repository)
    with contained(repository, tmp_path, secrets=pem) as server:
        for option in ((), ("--ready",)):
            assert health(server.http, *option).stdout == "healthy: toy\n"
        certificates = {"tls_ca": pem / "tls-ca.pem", "tls_cert": pem / "tls.pem", "tls_key": pem / "tls.key"}
        access = slime_client.Access(admin_key_file=pem / "admin-key", **certificates)
        with slime_client.Segmenter(server.grpc, "toy", access=access) as toy:
            assert toy.segment(picture(20, 30)).array.shape == (20, 30)
        Publisher(server.grpc, access).load("toy")
        for less in ({"admin_key_file": None}, {"tls_cert": None, "tls_key": None}):
            with pytest.raises(ServerError):
                Publisher(server.grpc, replace(access, **less)).load("toy")
        with pytest.raises(ServerError):
            Publisher(server.grpc)
    assert before == contents(repository)


def contents(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


@pytest.mark.triton
@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="needs root, to become another user")
def test_the_container_runs_as_anybody_on_what_it_cannot_write(toy_repository: Path) -> None:
    """Read-only, as a user who may read everything, because Python may lie anywhere, and has no other rights."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o755)
        repository = Path(shutil.copytree(toy_repository, folder / "models"))
        for path in (repository, *repository.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        reads = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
        becomes = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *reads]
        with contained(repository, folder, before=becomes) as server:
            assert health(server.http).stdout == "healthy: toy\n"
            assert server.segment("toy", png(picture(20, 30))).shape == (20, 30)
            status = Path(f"/proc/{server.launcher.pid}/status").read_text()
            assert f"Uid:\t{NOBODY}" in status
            with pytest.raises(ServerError, match="restricted"):
                Publisher(server.grpc).load("toy")


def test_compose() -> None:
    service: dict[str, Any] = yaml.safe_load((SERVE / "compose.yaml").read_text())["services"]["slime"]
    assert service["read_only"] and service["shm_size"] and service["cap_drop"] == ["ALL"]
    assert all(each.endswith(":ro") for each in service["volumes"])
    assert service["ports"] == ["127.0.0.1:8001:8001"]
