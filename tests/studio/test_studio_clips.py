"""A clip that is dropped on the page: the server segments it in a job, and it can be looked through."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from clips import clip, picture
from fake_triton import FakeTriton
from starlette.testclient import TestClient
from studios import SECONDS

from slime_studio.studio import Studio

av = pytest.importorskip("av")


@pytest.fixture
def server() -> Iterator[FakeTriton]:
    server = FakeTriton()
    server.start()
    yield server
    server.stop()


def test_a_clip_is_segmented_and_can_be_looked_through(
    client: TestClient, studio: Studio, server: FakeTriton, tmp_path: Path
) -> None:
    film = clip(tmp_path / "a film.mp4", (picture(number, 32, 32) for number in range(12))).read_bytes()
    query = {"name": "a film.mp4", "segmenter": "car", "url": server.url}
    sent = client.post("/api/clips", params=query, content=film)
    assert sent.status_code == 200, sent.text
    number = sent.json()["job"]
    deadline = time.monotonic() + SECONDS
    while (job := studio.jobs.one(number))["state"] in ("queued", "running"):
        assert time.monotonic() < deadline, job
        time.sleep(0.05)
    assert (job["state"], job["title"]) == ("done", "Segment a film.mp4 with car"), job
    assert job["progress"] == {"step": 12, "steps": 12, "film": "overlay.mp4"}
    where = f"/api/jobs/{number}/overlay.mp4"
    assert client.get(where, headers={"Range": "bytes=0-99"}).status_code == 206
    with av.open(io.BytesIO(client.get(where).content)) as container:
        assert len(list(container.decode(video=0))) == 12
    assert not list(studio.project.folder.glob(".received-*"))


def test_what_is_no_clip_is_told_in_one_line(client: TestClient, studio: Studio) -> None:
    told = client.post("/api/clips", params={"name": "b.mp4", "segmenter": "car", "url": "here:1"}, content=b"text")
    assert told.status_code == 400
    assert told.json()["error"].startswith("b.mp4: cannot be opened")
    told = client.post("/api/clips", params={"name": "b.mp4", "segmenter": "car"}, content=b"text")
    assert told.status_code == 409 and "none runs" in told.json()["error"]
    assert studio.jobs.every() == [] and not list(studio.project.folder.glob(".received-*"))
