"""A studio on a folder of its own, asked without a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from studios import PORT, TOKEN

from slime_studio.app import make_app
from slime_studio.project import Project
from slime_studio.studio import Studio


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    made = Studio(Project(tmp_path / "cars"))
    yield made
    made.close()


@pytest.fixture
def client(studio: Studio) -> Iterator[TestClient]:
    """A program that has the token."""
    app = make_app(studio, TOKEN, PORT, frozenset({f"127.0.0.1:{PORT}"}))
    headers = {"Authorization": f"token {TOKEN}"}
    with TestClient(app, base_url=f"http://127.0.0.1:{PORT}", headers=headers) as made:
        yield made
