"""Jobs run one after the other, can be cancelled, and outlive a studio that is killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from studios import SECONDS, Running, encoded, noise

import backbones
from slime_optimize import Segmenter
from slime_studio import files
from slime_studio.errors import StudioError
from slime_studio.jobs import Jobs

pytestmark = pytest.mark.slow
PATCH = "/api/images/photo/patch?x=0&y=0&w=8&h=8"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return backbones.build(tmp_path_factory.mktemp("backbone") / "sd15")


@pytest.fixture
def running(tmp_path: Path, backbone: Path) -> Iterator[list[Running]]:
    """A studio with an image of 40 x 30 that is painted; those that a test starts besides are stopped too."""
    started = [Running(tmp_path / "cars", "--backbone", str(backbone))]
    (first,) = started
    first.post("/api/parts", {"name": "body"})
    first.client.post("/api/images?name=photo.png", content=encoded(noise(30, 40)))
    first.client.post("/api/images?name=other.png", content=encoded(noise(30, 40, 1)))
    assert first.client.post(PATCH, content=np.ones((8, 8), np.uint8).tobytes()).status_code == 200
    first.post("/api/images/photo", {"example": True})
    yield started
    for each in started:
        each.stop()


def worker(running: Running, number: int) -> int:
    pid: int = running.job(number)["pid"]
    return pid


def test_a_job_outlives_a_killed_studio(running: list[Running]) -> None:
    (first,) = running
    number = first.post("/api/learn", {"steps": 120})["job"]
    first.await_job(number, lambda job: job.get("progress", {}).get("step", 0) >= 3)
    assert first.client.post(PATCH, content=np.full((8, 8), 255, np.uint8).tobytes()).status_code == 200
    first.kill()
    second = Running(first.project)
    running.append(second)
    assert second.token == first.token  # a page that is open goes on
    assert set(second.client.get("/api/images/photo/mask").content) == {0, 255}
    job = second.await_job(number, lambda job: job["state"] == "done")
    assert job["progress"]["step"] == 120 and len(job["progress"]["curve"]) == 120
    (picture, *_) = job["progress"]["pictures"]
    assert second.client.get(f"/api/jobs/{number}/{picture['file']}").headers["content-type"] == "image/jpeg"
    second.await_job(number + 1, lambda job: job["state"] == "done")  # what was learned segments the images
    (segmenter,) = second.state()["segmenters"]
    assert segmenter["looks"].keys() == {"photo", "other"}
    made = Segmenter.load(first.project / "segmenters" / segmenter["name"])
    assert "#{:02x}{:02x}{:02x}".format(*made.colours[1]) == second.state()["parts"][1]["colour"]
    mask = second.client.get(f"/api/looks/{segmenter['name']}/other/mask")
    assert mask.status_code == 200 and set(mask.content) <= {0, 1}


def test_a_job_whose_process_died_is_offered_again_and_goes_on(running: list[Running]) -> None:
    (first,) = running
    number = first.post("/api/learn", {"steps": 3000})["job"]
    checkpoint = first.project / "segmenters" / f"v{number}" / "checkpoint.safetensors"
    first.await_job(number, lambda job: checkpoint.exists())
    pid = worker(first, number)
    first.kill()
    os.killpg(pid, signal.SIGKILL)
    second = Running(first.project)
    running.append(second)
    with pytest.raises(AssertionError):  # it leaves the state `running` on its own
        second.await_job(number, lambda job: False)
    assert second.job(number)["state"] == "stopped"
    second.post(f"/api/jobs/{number}/resume")
    second.await_job(number, lambda job: "goes on after step" in second.client.get(f"/api/jobs/{number}/log.txt").text)
    waiting = second.post("/api/learn", {"steps": 2, "begin": None})["job"]
    assert second.job(waiting)["state"] == "queued"
    second.post(f"/api/jobs/{number}/cancel")
    assert second.job(number)["state"] == "cancelled"
    second.await_job(waiting, lambda job: job["state"] == "done")
    refused = second.client.post(f"/api/jobs/{waiting}/resume")
    assert refused.status_code == 409 and "is done" in refused.json()["error"]
    on = second.post("/api/learn", {"steps": 2, "begin": f"v{waiting}"})["job"]
    second.await_job(on, lambda job: job["state"] == "done")
    assert second.state()["segmenters"][0]["begun_from"] == f"v{waiting}"
    second.post("/api/parts", {"name": "wheel"})
    second.client.post("/api/images/photo/patch?x=9&y=9&w=1&h=1", content=b"\2")
    refused = second.client.post("/api/learn", json={"begin": f"v{waiting}"})
    assert refused.status_code == 400 and "has the parts background, body, the project" in refused.json()["error"]


def staged(project: Path) -> list[Path]:
    """What an export is preparing beside the repository."""
    return list(project.glob(".repository.staging-*"))


def test_a_studio_killed_while_publishing_leaves_nothing_half_done(running: list[Running]) -> None:
    (first,) = running
    learned = first.post("/api/learn", {"steps": 2})["job"]
    first.await_job(learned, lambda job: job["state"] == "done")
    number = first.post("/api/publish", {"segmenter": f"v{learned}", "name": "car"})["job"]
    first.await_job(number, lambda job: bool(staged(first.project)))
    assert first.client.post(PATCH, content=np.full((8, 8), 255, np.uint8).tobytes()).status_code == 200
    pid = worker(first, number)
    first.kill()
    os.killpg(pid, signal.SIGKILL)  # a power cut

    second = Running(first.project)
    running.append(second)
    with pytest.raises(AssertionError):  # it leaves the state `running` on its own
        second.await_job(number, lambda job: False)
    assert second.job(number)["state"] == "stopped"
    assert second.client.get("/api/published").json() == []
    assert set(second.client.get("/api/images/photo/mask").content) == {0, 255}
    left = set(staged(first.project))
    second.post(f"/api/jobs/{number}/resume")
    second.await_job(number, lambda job: bool(set(staged(first.project)) - left))
    second.kill()  # the studio alone

    third = Running(first.project)
    running.append(third)
    third.await_job(number, lambda job: job["state"] == "done")
    (row,) = third.client.get("/api/published").json()
    assert (row["name"], row["version"], row["versions"], row["parts"]) == ("car", 1, [1], ["background", "body"])
    assert row["parity"] and staged(first.project) == []


def test_what_fails_says_why(running: list[Running]) -> None:
    (first,) = running
    shown = first.client.post("/api/publish", json={"segmenter": "v9", "name": "car"})
    assert shown.status_code == 404
    number = first.post("/api/learn", {"steps": 1, "seed": 0})["job"]
    (first.project / "jobs" / f"{number:04}" / "masks" / "photo.png").write_bytes(b"no picture")
    with pytest.raises(AssertionError):
        first.await_job(number, lambda job: False)
    job = first.job(number)
    assert job["state"] == "failed" and "not a readable picture" in job["error"]


def test_a_full_disk_queues_nothing(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path / "jobs", lambda number: None, lambda job: None)

    def full(number: int, folder: Path) -> dict[str, object]:
        raise StudioError("job: not saved, the disk is full", 507)

    with pytest.raises(StudioError, match="disk is full"):
        jobs.add("learn", "Learn", full)
    assert jobs.every() == []
    jobs.start()
    jobs.close()


@pytest.mark.parametrize(("ended", "state"), [({"code": 0}, "done"), ({"code": 2}, "failed"), ({}, "stopped")])
def test_a_job_that_ended_while_no_studio_ran_is_finished_by_the_next(
    ended: dict[str, int], state: str, tmp_path: Path
) -> None:
    folder = tmp_path / "jobs" / "0001"
    job = {"number": 1, "kind": "learn", "title": "Learn", "state": "running", "pid": 2**22 + 1}
    files.write_json(folder / "job.json", job)
    if ended:
        files.write_json(folder / "ended.json", ended)
    (folder / "log.txt").write_text("reading\nerror: mask: is empty\n")
    followed: list[int] = []
    jobs = Jobs(tmp_path / "jobs", lambda number: None, lambda job: followed.append(job["number"]))
    jobs.start()
    deadline = time.monotonic() + SECONDS
    while jobs.one(1)["state"] == "running":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    jobs.close()
    assert jobs.one(1)["state"] == state and followed == ([1] if state == "done" else [])
    assert state != "failed" or jobs.one(1)["error"] == "mask: is empty"
