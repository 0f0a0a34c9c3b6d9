"""The toy repository, and a server on it, for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from toy import build_repository

from serving import Served, served


@pytest.fixture(scope="session")
def toy_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_repository(tmp_path_factory.mktemp("served") / "repository")


@pytest.fixture(scope="session")
def toy_server(toy_repository: Path) -> Iterator[Served]:
    with served(toy_repository) as server:
        yield server
