"""What ships for monitoring names only metrics that a server has; and systemd takes the unit."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving import ROOT, Served

MONITORING = ROOT / "serve" / "monitoring"
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
ALERTS = yaml.safe_load((MONITORING / "alerts.yml").read_text())


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
    labels = {*re.findall(r'[{,](\w+)="', text), "instance", "job", "model"}
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
