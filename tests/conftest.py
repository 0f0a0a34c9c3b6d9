"""For every test: no hub, no telemetry, one thread to a process; and which tests share a process.

`make test` runs tests in several processes. Tests of one module stay together, because they share what its fixtures
made, and all tests that start a server stay together, so that no two servers run at a time.
"""

from __future__ import annotations

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        group = "server" if item.get_closest_marker("triton") else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))
