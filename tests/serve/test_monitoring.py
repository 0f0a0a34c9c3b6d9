"""What ships for monitoring names only metrics that a server has; and systemd takes the unit."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import yaml
from toy import build_repository
from tritonclient.grpc import service_pb2_grpc

from charts import helm
from serving import ROOT, Served, png, served
from slime_client import protocol
from slime_serve import process

MONITORING = ROOT / "serve" / "monitoring"
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
SCALED = "slime-serve/templates/autoscaling.yaml"
ALERTS = yaml.safe_load((MONITORING / "alerts.yml").read_text())


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 90
    while not holds() and time.monotonic() < deadline:
        time.sleep(1)
    return holds()


def expressions() -> dict[str, str]:
    """The PromQL of every panel and every alert, by its title."""
    panels = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
    }
    return panels | {rule["alert"]: rule["expr"] for group in ALERTS["groups"] for rule in group["rules"]}


@pytest.mark.triton
def test_every_metric_and_label_is_one_that_the_server_has(toy_server: Served) -> None:
    with urllib.request.urlopen(f"http://{toy_server.metrics}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    told = set(re.findall(r"^(\w+)(?:\{| )", text, re.MULTILINE)) | set(
        re.findall(r"^# TYPE (\w+)", text, re.MULTILINE)
    )
    labels = {*re.findall(r'[{,](\w+)="', text), "__name__", "instance", "job", "model"}
    found = expressions()
    assert len(found) > 20
    for title, expression in found.items():
        names = set(re.findall(r"\b(?:slime|nv)_\w+", expression))
        assert names <= told, title
        assert names or "up{" in expression, title
        for group in re.findall(r"by \(([^)]*)\)|\{([^}]*)\}", expression):
            wanted = re.findall(r"\w+(?=\s*(?:[,=!]|$))", re.sub(r'"[^"]*"', "", " ".join(group)).strip())
            assert set(wanted) <= labels, title


def test_the_dashboard_can_be_imported() -> None:
    panels: list[dict[str, Any]] = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    (variable,) = DASHBOARD["templating"]["list"]
    assert variable["type"] == "datasource"
    for panel in panels:
        assert panel["datasource"]["uid"] == "${datasource}" and panel["description"]
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool, of Debian's package prometheus")
def test_prometheus_takes_the_rules() -> None:
    subprocess.run(["promtool", "check", "config", MONITORING / "prometheus.yml"], check=True)


@contextmanager
def prometheus(server: Served, folder: Path) -> Iterator[Callable[..., list[Any]]]:
    """A Prometheus that looks at the server every second, as at a pod of Kubernetes; what it answers to a query."""
    written = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    written["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    written["rule_files"] = [str(MONITORING / "alerts.yml")]
    labels = {"namespace": "vision", "pod": "slime-0"}
    written["scrape_configs"][0]["static_configs"] = [{"targets": [server.metrics], "labels": labels}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(written))
    (port,) = process.claim_ports({"prometheus": 0}, {}).values()
    options = (f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data")
    with (folder / "log").open("wb") as log:
        running = subprocess.Popen(
            ["prometheus", *options, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log
        )

    def api(path: str, **options: str) -> Any:
        address = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(options)}"
        with urllib.request.urlopen(address, timeout=30) as answer:
            told = json.loads(answer.read())
        assert told["status"] == "success", told
        return told["data"]

    try:
        yield api
    finally:
        running.terminate()
        running.wait(30)


@pytest.mark.triton
@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("prometheus"), reason="needs Debian's package prometheus")
def test_every_query_has_an_answer_under_load(tmp_path: Path) -> None:
    """Of the dashboard, the alerts without their thresholds, and of what adds pods, with a server that is overloaded.

    Those that compare with the day before, and those of Python processes, have nothing to tell here.
    """
    with helm() as ask:
        values = {"store": {"url": "s3://a/b"}, "adminKey": {"secret": "key"}, "tls": {"insecure": True}}
        values |= {"autoscaling": {"enabled": True, "prometheus": "http://prometheus:9090"}}
        scaled = yaml.safe_load(ask("render", values)[SCALED])
    queries = {name: text.replace("$__rate_interval", "30s") for name, text in expressions().items()}
    for rule in (rule for group in ALERTS["groups"] for rule in group["rules"]):
        queries[rule["alert"]] = re.sub(r"\s*(==|>|<) (0 ?$|[\d.]+\s*$)", "", rule["expr"].strip())
    scaled_at = float(scaled["spec"]["triggers"][0]["metadata"]["threshold"])
    queries["pods"] = scaled["spec"]["triggers"][0]["metadata"]["query"].replace("[1m]", "[30s]")
    compares = {"SlimeMasksUncertain", "SlimeRefusesImages"}

    async def flood(stop: threading.Event) -> None:
        """More at a time than a server takes, and now and then what is no image, over one connection."""
        pictures = [png(np.zeros((600, 900, 3), np.uint8))] * 120 + [b"no image"]

        async def ask(stub: Any, picture: bytes) -> None:
            request = protocol.infer("toy", {"IMAGE": picture}, ["MASK"])
            while not stop.is_set():
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await stub.ModelInfer(request, timeout=60)
                await asyncio.sleep(0.02)

        async with grpc.aio.insecure_channel(server.grpc) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            await asyncio.gather(*(ask(stub, picture) for picture in pictures))

    stop = threading.Event()
    client = threading.Thread(target=lambda: asyncio.run(flood(stop)))
    repository = build_repository(tmp_path / "repository", work=8)
    with served(repository) as server, prometheus(server, tmp_path) as api:

        def value(query: str) -> list[float]:
            try:
                return [float(each["value"][1]) for each in api("query", query=query)["result"]]
            except urllib.error.URLError:  # It has just been started.
                return []

        def missing() -> list[str]:
            return [name for name, query in queries.items() if name not in compares and not value(query)]

        client.start()
        try:
            assert eventually(lambda: not missing()), missing()
            assert eventually(lambda: max(value(queries["SlimeQueues"])) > 1), "nothing waits under overload"
            assert eventually(lambda: max(value(queries["SlimeRefusesRequests"])) > 0), "refusals are not counted"
            assert eventually(lambda: value(queries["pods"])[0] > scaled_at), "no pod would be added"
        finally:
            stop.set()
            client.join()
        rules = [rule for group in api("rules")["groups"] for rule in group["rules"]]
        assert len(rules) == len([rule for group in ALERTS["groups"] for rule in group["rules"]])
        assert eventually(lambda: all(each["health"] == "ok" for each in api("rules")["groups"][0]["rules"]))


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """With the command of this machine, because systemd looks whether it is there."""
    unit = (ROOT / "serve" / "slime-serve.service").read_text()
    command = re.search(r"^ExecStart=(\S+) (.*)$", unit, re.MULTILINE)
    assert command
    (tmp_path / "slime-serve.service").write_text(
        unit.replace(command[1], str(Path(sys.executable).with_name("slime")))
    )
    done = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / "slime-serve.service"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
