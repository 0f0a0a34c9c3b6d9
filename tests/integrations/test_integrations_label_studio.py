"""The studio as the model of a project in the real Label Studio: connect, paint, learn, look at better predictions.

    LABEL_STUDIO=build/with-label-studio/bin/label-studio python -m pytest THIS        what make test-label-studio does
    PICTURES=docs/label-studio                                                         besides: keeps its pictures there

Label Studio runs in an environment of its own, because it wants numpy 2; the studio and Triton in this one.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright
from studios import Running, encoded

from slime_backbone.scene import parts_of, scene
from slime_studio.label_studio.brush import decode, encode

PROGRAM = os.environ.get("LABEL_STUDIO", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.triton,
    pytest.mark.alone,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not PROGRAM, reason="needs Label Studio: make test-label-studio"),
]
PEOPLE = {"email": "paint@example.com", "password": "paint-the-parts"}
PARTS = parts_of("car")
SIDE = 128
SCENES = [scene("car", "train-1", 0), *(scene("car", "test", index) for index in range(6))]
CONFIG = """<View>
  <Image name="photo" value="$image" zoom="true" zoomControl="true"/>
  <BrushLabels name="part" toName="photo">
    <Label value="body" background="#4285f4"/><Label value="light" background="#fbbc05"/>
    <Label value="plate" background="#ea4335"/><Label value="wheel" background="#34a853"/>
    <Label value="window" background="#ab47bc"/>
  </BrushLabels>
</View>"""
LONG_MS = 120_000
STEPS = 40
Mask = npt.NDArray[np.uint8]


class Person:
    """Somebody who uses Label Studio through its API, with the session that its page has."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = httpx2.Client(base_url=url, timeout=120, follow_redirects=True)
        self.client.get("/user/login")
        answer = self.client.post("/user/login", data={**PEOPLE, **self._csrf()}, headers={"Referer": url})
        assert answer.status_code == 200 and "sessionid" in self.client.cookies, answer.text[-500:]

    def _csrf(self) -> dict[str, str]:
        return {"csrfmiddlewaretoken": self.client.cookies["csrftoken"]}

    def post(self, path: str, status: int = 201, **words: Any) -> Any:
        headers = {"X-CSRFToken": self.client.cookies["csrftoken"], "Referer": self.url}
        answer = self.client.post(path, headers=headers, **words)
        assert answer.status_code == status, (path, answer.status_code, answer.text[-800:])
        return answer.json() if answer.content else None

    def get(self, path: str) -> Any:
        answer = self.client.get(path)
        assert answer.status_code == 200, (path, answer.status_code, answer.text[-800:])
        return answer.json()

    def project(self, title: str, config: str, images: Sequence[bytes]) -> tuple[int, list[int]]:
        """Make a project with images; return its number and its tasks'."""
        number: int = self.post("/api/projects/", json={"title": title, "label_config": config})["id"]
        files = {f"file-{index}": (f"car-{index}.png", data, "image/png") for index, data in enumerate(images)}
        self.post(f"/api/projects/{number}/import", files=files)
        tasks = self.get(f"/api/tasks?project={number}&page_size=100")["tasks"]
        assert len(tasks) == len(images)
        return number, sorted(task["id"] for task in tasks)

    def annotate(self, task: int, mask_HW: Mask) -> None:
        regions = [
            {
                "from_name": "part",
                "to_name": "photo",
                "type": "brushlabels",
                "original_width": SIDE,
                "original_height": SIDE,
                "image_rotation": 0,
                "value": {"format": "rle", "rle": encode(mask_HW == number), "brushlabels": [PARTS[number]]},
            }
            for number in range(1, len(PARTS))
            if (mask_HW == number).any()
        ]
        self.post(f"/api/tasks/{task}/annotations/", json={"result": regions})

    def retrieve(self, project: int) -> None:
        """Press "Retrieve predictions" for all tasks."""
        everything = {"selectedItems": {"all": True, "excluded": []}}
        self.post(f"/api/dm/actions?id=retrieve_tasks_predictions&project={project}", 200, json=everything)

    def predictions(self, task: int) -> dict[str, Any]:
        """The task's predictions by model version."""
        return {each["model_version"]: each for each in self.get(f"/api/tasks/{task}/")["predictions"]}


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    """Somebody who has just signed up at a Label Studio that may ask addresses of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("label-studio")
    settings = {
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder),
        "LATEST_VERSION_CHECK": "false",
        "COLLECT_ANALYTICS": "false",
        "ML_BLOCK_LOCAL_IP": "false",
        "SSRF_PROTECTION_ENABLED": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
        # A busy machine answers late: by default Label Studio waits for 1 second, and 3 where a model is set up.
        "ML_TIMEOUT_HEALTH": "30",
        "ML_TIMEOUT_SETUP": "30",
        "ML_CONNECTION_TIMEOUT": "30",
        "WEBHOOK_TIMEOUT": "30",
    }
    words = ["start", "--no-browser", "--port", str(port), "--internal-host", "127.0.0.1"]
    words += ["--username", PEOPLE["email"], "--password", PEOPLE["password"]]
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen([PROGRAM, *words], env={**os.environ, **settings}, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    wait_until(lambda: process.poll() is None and answers(url), 600)
    made = Person(url)
    yield made
    made.client.close()
    process.terminate()
    process.wait()


def answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health", timeout=5).status_code == 200
    except httpx2.HTTPError:
        return False


def wait_until(wanted: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < deadline
        time.sleep(0.5)


class Connected(Running):
    """`slime studio --label-studio` in a process of its own."""

    def __init__(self, project: Path, url: str) -> None:
        super().__init__(project, "--label-studio", url)
        assert self.process.stdout
        found = re.match(r"label-studio (http://\S+) ", self.process.stdout.readline())
        assert found
        self.address = found[1]

    def backend(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx2.get(f"{self.address}/state", timeout=60).json()
        return found

    def await_newer(self, version: str) -> str:
        """Wait until everything is learned and published; return the model's version, which is not `version`."""

        def there() -> bool:
            state = self.backend()
            assert {job["state"] for job in state["jobs"]} <= {"queued", "running", "done"}, state
            running = any(job["state"] != "done" for job in state["jobs"])
            return not state["waiting"] and not running and bool(state["model_version"] != version)

        wait_until(there, 1800)
        return str(self.backend()["model_version"])


@pytest.fixture
def studio(person: Person, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connected]:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", person.post("/api/token/")["token"])  # a personal access token
    made = Connected(tmp_path / "car", person.url)
    yield made
    made.stop()


@pytest.fixture
def page(person: Person) -> Iterator[Page]:
    """Label Studio in the browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        made = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
        made.set_default_timeout(LONG_MS)
        expect.set_options(timeout=LONG_MS)
        made.goto(f"{person.url}/user/login")
        made.fill("#email", PEOPLE["email"])
        made.fill("#password", PEOPLE["password"])
        made.click("[aria-label='Log In']")
        made.wait_for_url(lambda url: "login" not in url)
        yield made
        browser.close()


def picture(page: Page, name: str) -> None:
    """Keep a picture of the page for docs/label-studio.md, where that is wanted."""
    if folder := os.environ.get("PICTURES"):
        shown = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        shown.quantize(256).save(f"{folder}/{name}.png", optimize=True)  # a third of the bytes


def mask_of(prediction: dict[str, Any]) -> Mask:
    mask_HW = np.zeros((SIDE, SIDE), np.uint8)
    for region in prediction["result"]:
        value = region["value"]
        mask_HW[decode(value["rle"], SIDE, SIDE)] = PARTS.index(value["brushlabels"][0])
    return mask_HW


def iou(masks: Sequence[Mask], truths: Sequence[Mask]) -> float:
    """Mean over the parts, in percent, of all images' pixels together."""
    found, wanted = np.stack(masks), np.stack(truths)
    shares = [
        np.count_nonzero((found == part) & (wanted == part)) / np.count_nonzero((found == part) | (wanted == part))
        for part in range(len(PARTS))
    ]
    return 100 * float(np.mean(shares))


def test_paint_learn_and_predict_in_label_studio(person: Person, studio: Connected, page: Page) -> None:
    images = [encoded(each.image) for each in SCENES]
    project, tasks = person.project("Cars", CONFIG, images)
    person.annotate(tasks[0], SCENES[0].mask)  # before there is a model to be told of it
    rest = range(2, len(tasks))

    polygons, _ = person.project("Polygons", CONFIG.replace("BrushLabels", "PolygonLabels"), images[:1])
    refused = {"url": studio.address, "project": polygons, "title": "SLiMe"}
    assert "400 Client Error" in str(person.post("/api/ml/", 400, json=refused))

    told = {"url": studio.address, "project": project, "title": "SLiMe", "extra_params": {"steps": STEPS}}
    model = person.post("/api/ml/", json=told)
    model = person.get(f"/api/ml/{model['id']}")
    assert (model["readable_state"], model["model_version"]) == ("Connected", "nothing learned yet")
    person.retrieve(project)
    assert person.predictions(tasks[0]) == {}

    stroke(page, person, project, tasks[0])
    assert studio.await_newer("nothing learned yet") == "car version 1"
    added = np.argwhere(mask_on_page(studio) != SCENES[0].mask)
    assert 5 < len(added) < 100 and added[:, 0].max() - added[:, 0].min() < 8  # the stroke, and no other pixel
    person.retrieve(project)
    first = iou([mask_of(person.predictions(tasks[index])["car version 1"]) for index in rest], truths(rest))
    assert first > 30  # in so few steps

    open_task(page, person, project, tasks[3])
    parts = [region["value"]["brushlabels"][0] for region in person.predictions(tasks[3])["car version 1"]["result"]]
    expect(page.locator(".lsf-outliner-item__title")).to_have_text(parts)
    picture(page, "prediction")
    page.goto(f"{person.url}/projects/{project}/settings/ml")
    expect(page.get_by_text("Connected", exact=True)).to_be_visible(timeout=LONG_MS)
    picture(page, "model")

    worst = sorted(rest, key=lambda index: person.predictions(tasks[index])["car version 1"]["score"])[:2]
    for index in worst:
        person.annotate(tasks[index], SCENES[index].mask)
    person.post(f"/api/ml/{model['id']}/train", 200, json={})
    version = studio.await_newer("car version 1")
    person.retrieve(project)
    left = [index for index in rest if index not in worst]
    before = iou([mask_of(person.predictions(tasks[index])["car version 1"]) for index in left], truths(left))
    after = iou([mask_of(person.predictions(tasks[index])[version]) for index in left], truths(left))
    print(f"mean IoU of {len(left)} images: {before:.1f}, then {after:.1f}")
    assert after > before


def open_task(page: Page, person: Person, project: int, task: int) -> None:
    """Open a task, and wait until its regions are there."""
    page.goto(f"{person.url}/projects/{project}/data?task={task}")
    expect(page.locator(".lsf-outliner-item__title").first).to_be_visible()
    page.wait_for_timeout(2000)  # until they are drawn, which nothing tells


def stroke(page: Page, person: Person, project: int, task: int) -> None:
    """Add a stroke of the part `plate` with Label Studio's brush to an annotation, and update it."""
    open_task(page, person, project, task)
    page.locator(".lsf-label", has_text="plate").click()
    box = page.locator(".konvajs-content canvas").first.bounding_box()
    assert box
    scale = min(box["width"], box["height"]) / SIDE
    page.mouse.move(box["x"] + 10 * scale, box["y"] + 120 * scale)
    page.mouse.down()
    page.mouse.move(box["x"] + 20 * scale, box["y"] + 120 * scale, steps=5)
    page.mouse.up()
    with page.expect_response(lambda answer: "/annotations/" in answer.url and answer.request.method == "PATCH"):
        page.get_by_test_id("bottombar-update-button").click()


def mask_on_page(studio: Connected) -> Mask:
    """The mask of the one image that the studio has by now."""
    (image,) = studio.state()["images"]
    return np.frombuffer(studio.client.get(f"/api/images/{image['id']}/mask").content, np.uint8).reshape(SIDE, SIDE)


def truths(which: Sequence[int]) -> list[Mask]:
    return [SCENES[index].mask for index in which]
