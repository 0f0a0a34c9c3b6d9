"""For every test: no hub, no telemetry, one thread to a process; and which tests share a process.

`make test` runs tests in several processes. Tests of one module stay together, because they share what its fixtures
made, and all tests that start a server stay together, so that no two servers run at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")


# A wrapper, since pytest-xdist reads the groups in a hook of its own that would otherwise come first.
@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            group = "server" if item.get_closest_marker("triton") else item.path.name
            item.add_marker(pytest.mark.xdist_group(group))
    yield
