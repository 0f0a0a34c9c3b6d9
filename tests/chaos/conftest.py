"""A toy segmenter of its own for every test: the server is hurt."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy import described_repository


@pytest.fixture(scope="session")
def toy_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return described_repository(tmp_path_factory.mktemp("chaos") / "repository")
