"""For every test: no hub, no telemetry, one thread to a process, and nothing in the user's own cache.

`make test` runs tests in several processes. Those of one file share one, because they share what its fixtures made.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["SLIME_OPENVINO_CACHE"] = str(Path(tempfile.gettempdir()) / "slime-tests-openvino")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files with the most slow tests first, so that all processes have work until nearly the end."""
    slow = Counter(each.path for each in items if {"slow", "triton"} & {mark.name for mark in each.iter_markers()})
    items.sort(key=lambda each: -slow[each.path])
