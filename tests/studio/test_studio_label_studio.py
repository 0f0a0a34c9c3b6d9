"""The studio as a project's model in Label Studio, whose answers are recorded here.

tests/integrations/test_integrations_label_studio.py does the same with the real one.
"""

from __future__ import annotations

import base64
import io
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import numpy as np
import numpy.typing as npt
import pytest
from fake_triton import CAR, FakeTriton
from PIL import Image
from starlette.testclient import TestClient
from studios import PORT, SECONDS, TOKEN, encoded, noise

from slime_studio import files
from slime_studio.app import make_app
from slime_studio.command import main
from slime_studio.errors import StudioError
from slime_studio.label_studio import brush, protocol
from slime_studio.label_studio.backend import Backend
from slime_studio.label_studio.fetch import LabelStudio
from slime_studio.label_studio.labels import read_config
from slime_studio.studio import Studio

SECRET = "f" * 48
ADDRESS = f"/label-studio/{SECRET}"
HOST = "http://label-studio.test:8080"
HEIGHT, WIDTH = 30, 40
CONFIG = """<View>
  <Header value="Cars"/>
  <Image name="photo" value="$picture" zoom="true"/>
  <BrushLabels name="strokes" toName="photo"><Label value="body" background="#F00"/></BrushLabels>
  <BrushLabels name="more" toName="photo"><Label value="wheel"/><Label value="void"/></BrushLabels>
</View>"""
# What label_studio_sdk 2.1.2's mask2rle makes of the region in test_run_lengths_are_label_studios.
THEIRS = [0, 0, 0, 24, 57, 27, 252, 96, 19, 255, 219, 0, 0]
Mask = npt.NDArray[np.bool_]


def painted(top: int, left: int, bottom: int, right: int) -> Mask:
    region = np.zeros((HEIGHT, WIDTH), bool)
    region[top:bottom, left:right] = True
    return region


def region(label: str, where: Mask, **facts: Any) -> dict[str, Any]:
    """A region as Label Studio's page sends it."""
    value = {"format": "rle", "rle": brush.encode(where), "brushlabels": [label]}
    tag = "strokes" if label == "body" else "more"
    return {
        "id": "Q1wXcV2bnM",
        "from_name": tag,
        "to_name": "photo",
        "type": "brushlabels",
        "origin": "manual",
        "original_width": WIDTH,
        "original_height": HEIGHT,
        "image_rotation": 0,
        "value": value,
    } | facts


BODY, WHEEL = region("body", painted(0, 0, 20, 20)), region("wheel", painted(10, 10, 30, 30))


@dataclass
class FakeLabelStudio:
    """What Label Studio answers to the studio."""

    annotations: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    images: dict[int, str] = field(default_factory=dict)
    content: dict[str, bytes] = field(default_factory=dict)
    exported: list[dict[str, Any]] = field(default_factory=list)
    moved: str = ""
    seen: list[httpx2.Request] = field(default_factory=list)

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.seen.append(request)
        path = request.url.path
        if path == "/api/token/refresh/":
            return httpx2.Response(200, json={"access": f"access-{json.loads(request.content)['refresh']}"})
        if path == "/api/projects/3/":
            return httpx2.Response(200, json={"id": 3, "label_config": CONFIG})
        if path == "/api/projects/3/export":
            return httpx2.Response(200, json=self.exported or [self.task(number) for number in self.images])
        if self.moved:
            return httpx2.Response(302, headers={"Location": self.moved})
        if path in self.content:
            return httpx2.Response(200, content=self.content[path])
        return httpx2.Response(404, json={"detail": "Not found."})

    def add(self, number: int, *regions: dict[str, Any], image: bytes | None = None, **facts: Any) -> None:
        """Import an image, and annotate it with the regions."""
        self.images[number] = f"/data/upload/3/{number}.png"
        self.content.setdefault(self.images[number], image or encoded(noise(HEIGHT, WIDTH, number)))
        made = {"id": 100 + number, "result": list(regions), "was_cancelled": False, "ground_truth": False}
        earlier = self.annotations.setdefault(number, [])
        earlier.append({**made, "updated_at": f"2026-11-27T10:00:{len(earlier):02}Z", **facts})

    def task(self, number: int) -> dict[str, Any]:
        annotations = self.annotations.get(number, [])
        return {"id": number, "project": 3, "data": {"picture": self.images[number]}, "annotations": annotations}


@pytest.fixture
def source() -> FakeLabelStudio:
    return FakeLabelStudio()


@pytest.fixture
def runs(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The jobs that were run, in a moment: what is learned is a segmenter.json, what is published the next version."""
    ran: list[dict[str, Any]] = []

    def start(words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        folder = Path(words[-1])
        job = files.read_json(folder / "job.json")
        ran.append(job)
        if job["kind"] == "learn":
            parts = json.loads((folder / "masks" / "parts.json").read_text())
            facts = {"parts": parts, "created": job["segmenter"], "backbone": {"id": "embedded"}}
            metrics = {"training": {"mean_iou": 90.0}, "seconds": 1.0}
            files.write_json(Path(job["out"]) / "segmenter.json", facts | {"training_images": [], "metrics": metrics})
        if job["kind"] == "publish":
            studio.repository.mkdir(exist_ok=True)
        files.write_json(folder / "ended.json", {"code": 0})
        process = subprocess.Popen(["true"])
        process.wait()
        return process

    def rows(repository: Path) -> list[Any]:
        version = len([job for job in ran if job["kind"] == "publish"])
        parts = ("background", "body", "wheel")
        return [SimpleNamespace(name="cars", version=version, created="now", parts=parts)] if version else []

    monkeypatch.setattr("slime_studio.label_studio.backend._POLL_SECONDS", 0.02)
    monkeypatch.setattr("slime_studio.jobs._POLL_SECONDS", 0.02)
    monkeypatch.setattr("slime_studio.processes.start", start)
    monkeypatch.setattr("slime_repository.listing.rows", rows)
    return ran


@pytest.fixture
def label_studio(studio: Studio, source: FakeLabelStudio, runs: list[dict[str, Any]]) -> Iterator[TestClient]:
    """Label Studio, asking the studio."""
    backend = Backend(studio, LabelStudio(HOST, "key", httpx2.MockTransport(source)))
    hosts = frozenset({f"127.0.0.1:{PORT}"})
    app = make_app(studio, TOKEN, PORT, hosts, protocol.PREFIX, protocol.routes(backend, SECRET))
    with TestClient(app, base_url="http://studio.test") as made:
        yield made
    backend.close()


@pytest.fixture
def server(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTriton]:
    """The studio's server, whose segmenter finds the part 1 in the right half of every image."""
    server = FakeTriton(models={"cars": {**CAR, "created": "now"}})
    server.start()
    monkeypatch.setattr(studio.serving, "state", lambda: {"state": "ready", "url": server.url})
    yield server
    server.stop()


def connect(label_studio: TestClient, config: str = CONFIG, extra: Any = None) -> Any:
    facts = {"project": "3.1795773600", "schema": config, "hostname": HOST, "access_token": "t", "extra_params": extra}
    return label_studio.post(f"{ADDRESS}/setup", json=facts)


def predict(label_studio: TestClient, *tasks: dict[str, Any], **params: Any) -> Any:
    facts = {"tasks": tasks, "project": "3.1795773600", "label_config": CONFIG}
    answer = label_studio.post(f"{ADDRESS}/predict", json=facts | {"params": {"context": None} | params})
    assert answer.status_code == 200, answer.text
    return answer.json()


def finish(label_studio: TestClient, action: str = "ANNOTATION_CREATED") -> None:
    answer = label_studio.post(f"{ADDRESS}/webhook", json={"action": action, "project": {"id": 3}})
    assert answer.status_code == 201


def state_when(label_studio: TestClient, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    deadline = time.monotonic() + SECONDS
    while True:
        state: dict[str, Any] = label_studio.get(f"{ADDRESS}/state").json()
        if wanted(state):
            return state
        assert time.monotonic() < deadline, state
        time.sleep(0.05)


def settled(label_studio: TestClient) -> dict[str, Any]:
    """Wait until everything that was asked for was learned and published."""

    def still(state: dict[str, Any]) -> bool:
        jobs = state["jobs"]
        return not state["waiting"] and all(job["state"] not in ("queued", "running") for job in jobs)

    state = state_when(label_studio, still)
    if any(job["title"].startswith("Learn") for job in state["jobs"][:2]):  # not published yet
        return state_when(label_studio, lambda state: still(state) and "Publish" in state["jobs"][0]["title"])
    return state


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (1, 30_000), (200, 300)])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_regions_come_back_as_they_were(size: tuple[int, int], share: float) -> None:
    region_HW = np.random.default_rng(0).random(size) < share
    assert np.array_equal(brush.decode(brush.encode(region_HW), *size), region_HW)


def test_run_lengths_are_label_studios() -> None:
    region_HW = np.array([[0, 1, 1], [0, 0, 0]], bool)
    assert brush.encode(region_HW) == THEIRS[:-1]  # it fills up what is full
    assert np.array_equal(brush.decode(THEIRS, 2, 3), region_HW)
    # 24 values, each written out: one stretch of different values, with alpha 0, 127, 128, 255, 0 and 0.
    values = b"".join(bytes([9, 200, 3, alpha]) for alpha in (0, 127, 128, 255, 0, 0))
    bits = f"{24:032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}" + "0" + "10" + f"{23:08b}"
    bits += "".join(f"{value:08b}" for value in values)
    bits += "0" * (-len(bits) % 8)
    rle = [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]
    assert brush.decode(rle, 2, 3).tolist() == [[False, False, True], [True, False, False]]


@pytest.mark.parametrize(
    ("rle", "told"),
    [
        ([], "run lengths are for 0 values, expected 24"),
        (
            brush.encode(np.ones((9, 9), bool)),
            "run lengths are for 324 values, expected 24, four for each pixel of 3x2",
        ),
        (brush.encode(np.eye(2, 3) > 0)[:-3], "are damaged"),
        ([300], "are no bytes"),
        (["a"], "are no bytes"),
        (None, "are no bytes"),
        ([*(24).to_bytes(4, "big"), 0x3A, 0x37, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF], "are damaged"),
    ],
)
def test_damaged_run_lengths_are_told(rle: Any, told: str) -> None:
    with pytest.raises(StudioError, match=told):
        brush.decode(rle, 2, 3)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (CONFIG.replace("BrushLabels", "PolygonLabels"), "has BrushLabels on 0 images (none), expected on one"),
        (CONFIG.replace('name="more" toName="photo"', 'name="more" toName="other"'), "on 2 images (other, photo)"),
        (CONFIG.replace("$picture", "picture"), "expected an Image of this name with one image in value="),
        (CONFIG.replace("value=", "valueList="), "a list of images is not segmented"),
        (CONFIG.replace("<Image", "<Video"), "expected an Image of this name"),
        (CONFIG.replace('"wheel"', '"body"'), "has the label 'body' twice"),
        ("<View>", "is no XML"),
        ("", "is no XML"),
        ('<!DOCTYPE a [<!ENTITY b "c">]>' + CONFIG, "expected tags alone"),
        (
            CONFIG.replace("</View>", "")
            + '<BrushLabels name="x" toName="photo">'
            + "".join(f'<Label value="part {number}"/>' for number in range(75))
            + "</BrushLabels></View>",
            "got 78 names, expected 2 to 77",
        ),
    ],
)
def test_a_config_that_nothing_can_be_learned_with_is_refused(config: str, told: str, label_studio: TestClient) -> None:
    refused = connect(label_studio, config)
    assert refused.status_code == 400
    line = refused.json()["error"]
    assert line.startswith("label config: ") and told in line and "\n" not in line
    other = {"project": "4.1795773600", "schema": CONFIG}  # which the studio is not bound against
    assert label_studio.post(f"{ADDRESS}/setup", json=other).status_code == 200


def test_who_may_ask(label_studio: TestClient) -> None:
    def basic(words: str) -> dict[str, str]:
        return {"Authorization": "Basic " + base64.b64encode(words.encode()).decode()}

    assert label_studio.get(f"{ADDRESS}/health").json() == {"status": "UP", "model_class": "SLiMe"}
    assert label_studio.get("/label-studio/health", headers=basic(f"me:{SECRET}")).status_code == 200
    refused = label_studio.get("/label-studio/health")
    assert refused.status_code == 401 and refused.headers["www-authenticate"].startswith("Basic")
    wrong = (f"me:{SECRET[1:]}", f"{SECRET}:me", f"me:{TOKEN}", "", ":")
    assert {label_studio.get("/label-studio/health", headers=basic(words)).status_code for words in wrong} == {401}
    assert label_studio.get("/label-studio/health", headers={"Authorization": b"Basic \xe9"}).status_code == 401
    assert label_studio.get(f"/label-studio/{TOKEN}/state").status_code == 401
    assert label_studio.get(f"{ADDRESS}/health", headers={"Origin": "http://evil.example"}).status_code == 403
    # The page still has its token, Host and Origin.
    assert label_studio.get("/api/state").status_code == 403
    local = {"Host": f"127.0.0.1:{PORT}"}
    assert label_studio.get("/api/state", headers=local | {"Authorization": f"token {SECRET}"}).status_code == 403
    assert label_studio.get("/label-studio/../api/state", headers=local).status_code == 403
    assert label_studio.post(f"{ADDRESS}/%2e%2e/api/parts", json={"name": "a"}).status_code in (403, 404)


@pytest.mark.parametrize(
    "data", [b"[]", b"{", b"\xff", b'{"tasks": 3, "project": "3.1"}', b'{"tasks": [3], "project": 3}']
)
def test_what_is_no_request_is_told(data: bytes, label_studio: TestClient) -> None:
    refused = label_studio.post(f"{ADDRESS}/predict", content=data)
    assert refused.status_code == 400 and refused.json()["error"].startswith(("request: ", "tasks: "))


def test_another_project_is_refused(label_studio: TestClient) -> None:
    assert connect(label_studio).status_code == 200
    refused = label_studio.post(f"{ADDRESS}/setup", json={"project": "4.1", "schema": CONFIG})
    assert refused.status_code == 400 and "learns for Label Studio's project 3, got 4" in refused.json()["error"]
    assert label_studio.post(f"{ADDRESS}/setup", json={"project": "x", "schema": CONFIG}).status_code == 400
    other = {"action": "START_TRAINING", "project": {"id": 4}}
    assert label_studio.post(f"{ADDRESS}/webhook", json=other).status_code == 400


def test_before_anything_is_learned_there_are_no_predictions(
    label_studio: TestClient, source: FakeLabelStudio, studio: Studio
) -> None:
    assert connect(label_studio).json() == {"model_version": "nothing learned yet"}
    assert [part.name for part in studio.project.parts] == ["background", "body", "wheel"]
    source.add(1)
    assert predict(label_studio, source.task(1)) == {"results": [[]], "model_version": "nothing learned yet"}
    asked = predict(label_studio, source.task(1), context={"result": []})
    assert asked["results"] == [{"result": [], "score": 0.0, "model_version": "nothing learned yet"}]
    finish(label_studio, "START_TRAINING")
    state = settled(label_studio)
    assert state["problem"].startswith("learn: no image is painted") and state["jobs"] == []
    assert connect(label_studio).json()["model_version"].startswith("nothing learned yet (learn: no image is painted")


def test_finished_annotations_are_learned_and_published(
    label_studio: TestClient, source: FakeLabelStudio, studio: Studio, runs: list[dict[str, Any]], server: FakeTriton
) -> None:
    connect(label_studio)
    source.add(1, BODY, WHEEL, region("void", painted(29, 39, 30, 40)))
    finish(label_studio)
    state = settled(label_studio)
    assert [job["kind"] for job in runs if job["kind"] != "look"] == ["learn", "publish"]
    assert state["examples"] == [1] and state["model_version"] == "cars version 1" and state["refused"] == {}
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:20, :20], mask[10:30, 10:30], mask[29, 39] = 1, 2, 255  # what is painted later lies on top
    assert np.array_equal(studio.project.mask("task-1"), mask)
    learned = next(job for job in runs if job["kind"] == "learn")
    assert "--begin" not in learned["words"]
    (prediction,) = predict(label_studio, source.task(1))["results"]
    assert prediction["model_version"] == "cars version 1" and 0 <= prediction["score"] <= 1
    (shown,) = prediction["result"]
    rle = shown["value"].pop("rle")
    assert {name: shown[name] for name in shown if name != "id"} == {
        "from_name": "strokes",
        "to_name": "photo",
        "type": "brushlabels",
        "origin": "prediction",
        "original_width": WIDTH,
        "original_height": HEIGHT,
        "image_rotation": 0,
        "value": {"format": "rle", "brushlabels": ["body"]},
    }
    assert np.array_equal(brush.decode(rle, HEIGHT, WIDTH), painted(0, WIDTH // 2, HEIGHT, WIDTH))

    source.add(2, region("body", painted(1, 1, 9, 9)))
    finish(label_studio)
    state_when(label_studio, lambda state: state["model_version"] == "cars version 2")
    settled(label_studio)
    second = [job for job in runs if job["kind"] == "learn"][1]
    assert second["begin"] == "v1" and second["images"] == ["task-1", "task-2"]
    finish(label_studio)  # nothing has changed
    assert settled(label_studio)["model_version"] == "cars version 2"
    finish(label_studio, "START_TRAINING")
    state_when(label_studio, lambda state: state["model_version"] == "cars version 3")


def test_a_segmenter_of_other_parts_is_told(
    label_studio: TestClient, studio: Studio, runs: list[dict[str, Any]]
) -> None:
    """Such as one of the same name that a shared repository had before."""
    studio.repository.mkdir()
    runs.append({"kind": "publish"})
    other = CONFIG.replace("body", "door").replace("wheel", "roof")
    facts = {"tasks": [], "project": 3, "label_config": other}
    refused = label_studio.post(f"{ADDRESS}/predict", json=facts)
    assert refused.status_code == 409 and "none of which the label config has" in refused.json()["error"]


def test_a_server_that_lags_behind_makes_no_prediction(
    label_studio: TestClient, source: FakeLabelStudio, server: FakeTriton, runs: list[dict[str, Any]]
) -> None:
    """Else Label Studio would keep an old version's regions as the new one's."""
    connect(label_studio)
    source.add(1, BODY, WHEEL)
    finish(label_studio)
    settled(label_studio)
    server.models["cars"]["created"] = "before"
    assert predict(label_studio, source.task(1))["results"] == [[]]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (region("roof", painted(0, 0, 9, 9)), "has the label 'roof', which the label config has not"),
        (BODY | {"image_rotation": 90}, "its image was turned by 90 degrees"),
        (BODY | {"original_width": 41}, "is of an image of 41x30, expected 40x30"),
        (BODY | {"value": {"brushlabels": ["body", "wheel"], "rle": []}}, "has 2 labels, expected one"),
        (BODY | {"value": {"rle": []}}, "has 0 labels, expected one"),
        (BODY | {"value": BODY["value"] | {"rle": [1, 2, 3]}}, "run lengths are for"),
        (
            BODY | {"type": "rectanglelabels", "value": {"rectanglelabels": ["body"]}},
            "is rectanglelabels, expected a brush",
        ),
    ],
)
def test_an_annotation_that_cannot_be_learned_is_told_and_the_others_are(
    wrong: dict[str, Any], told: str, label_studio: TestClient, source: FakeLabelStudio
) -> None:
    connect(label_studio)
    choice = {"from_name": "c", "to_name": "photo", "type": "choices", "value": {"choices": ["good"]}}  # not ours
    source.add(1, BODY, WHEEL, choice)
    source.add(2, BODY, wrong)
    finish(label_studio)
    state = settled(label_studio)
    assert state["examples"] == [1] and state["model_version"] == "cars version 1"
    assert state["refused"]["2"].startswith("task 2: region: ") and told in state["refused"]["2"]


def test_which_annotation_counts(label_studio: TestClient, source: FakeLabelStudio, studio: Studio) -> None:
    """The newest that was not skipped; a region that was erased again is none."""
    connect(label_studio)
    source.add(1, BODY, WHEEL)
    source.add(1, region("body", painted(0, 0, 1, 1)), WHEEL, region("body", painted(0, 0, 0, 0)))
    source.add(1, was_cancelled=True)
    finish(label_studio)
    settled(label_studio)
    assert np.count_nonzero(studio.project.mask("task-1") == 1) == 1
    source.annotations[1] = source.annotations[1][2:]
    finish(label_studio, "START_TRAINING")
    state = settled(label_studio)
    assert state["examples"] == [] and "no image is painted" in state["problem"]
    assert not studio.project.image("task-1")["example"]


def turned() -> bytes:
    """A JPEG of 30 x 40 pixels that its EXIF tag turns upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(noise(WIDTH, HEIGHT), "JPEG", exif=exif)


def test_images_are_taken_upright_as_label_studio_shows_them(
    label_studio: TestClient, source: FakeLabelStudio, studio: Studio
) -> None:
    connect(label_studio)
    source.add(1, BODY, WHEEL, image=turned())
    finish(label_studio)
    assert settled(label_studio)["refused"] == {}
    with Image.open(io.BytesIO(studio.project.image_path("task-1").read_bytes())) as kept:
        assert kept.size == (WIDTH, HEIGHT)


def test_images_that_cannot_be_had_are_told(
    label_studio: TestClient, source: FakeLabelStudio, server: FakeTriton, capfd: pytest.CaptureFixture[str]
) -> None:
    connect(label_studio)
    source.add(1, BODY, WHEEL)
    for number in range(2, 9):
        source.add(number, BODY)
    del source.content[source.images[2]]
    source.images[3] = "http://169.254.169.254/latest/meta-data"
    source.images[4] = "s3://bucket/4.png"
    source.images[5] = "//evil.example/5.png"
    source.content[source.images[6]] = b"no image"
    source.images[7] = ""
    source.images[8] = "http://label-studio.test:8080@evil.example/8.png"
    finish(label_studio)
    state = settled(label_studio)
    assert state["examples"] == [1]
    gone, wrong = "Label Studio answered 404", "expected in Label Studio (http://label-studio.test:8080)"
    for number, told in enumerate([gone, wrong, wrong, wrong, "expected a readable", "has no 'picture'", wrong], 2):
        assert told in state["refused"][str(number)]
    capfd.readouterr()
    found = predict(label_studio, *(source.task(number) for number in (1, 2, 3)))["results"]
    assert found[0]["result"] and found[1:] == [[], []]
    assert [line.split(": ")[1] for line in capfd.readouterr().err.splitlines()] == ["task 2", "task 3"]
    assert {request.url.host for request in source.seen} == {"label-studio.test"}


def test_no_redirect_is_followed_and_answers_are_bounded(
    source: FakeLabelStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = LabelStudio(f"{HOST}/", "key", httpx2.MockTransport(source))
    source.add(1)
    assert asked.image(source.images[1]) == asked.image(HOST + source.images[1]) == source.content[source.images[1]]
    monkeypatch.setattr("slime_studio.label_studio.fetch.MAX_BYTES", 100)
    with pytest.raises(StudioError, match="is over 0"):
        asked.image(source.images[1])
    source.moved = "http://evil.example/x.png"
    with pytest.raises(StudioError, match="answered 302 to http"):
        asked.image(source.images[1])
    asked.close()


def test_label_studio_below_a_path(source: FakeLabelStudio) -> None:
    asked = LabelStudio(f"{HOST}/annotate", "key", httpx2.MockTransport(source))
    source.content["/annotate/data/1.png"] = b"x"
    for address in ("/data/1.png", "/annotate/data/1.png", f"{HOST}/annotate/data/1.png"):
        assert asked.image(address) == b"x"
    asked.close()


@pytest.mark.parametrize(
    ("key", "sent"), [("abcdef0123", "Token abcdef0123"), ("head.body.signature", "Bearer access-head.body.signature")]
)
def test_both_kinds_of_keys(key: str, sent: str, source: FakeLabelStudio) -> None:
    asked = LabelStudio(HOST, key, httpx2.MockTransport(source))
    for _ in range(2):
        assert asked.json("/api/projects/3/")["id"] == 3
    assert [request.headers["authorization"] for request in source.seen if request.method == "GET"] == [sent] * 2
    assert len(source.seen) == 2 + key.count(".") // 2
    asked.close()


def test_a_label_studio_that_does_not_answer_is_told(studio: Studio) -> None:
    def closed(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("Connection refused")

    asked = LabelStudio(HOST, "key", httpx2.MockTransport(closed))
    with pytest.raises(StudioError, match="does not answer \\(Connection refused\\); start it"):
        asked.json("/api/projects/3/")
    asked.close()


@pytest.mark.parametrize(
    ("url", "key", "told"),
    [
        ("localhost:8080", "key", "expected Label Studio's address"),
        ("ftp://localhost", "key", "expected Label Studio's address"),
        (HOST, "", "has no LABEL_STUDIO_API_KEY"),
    ],
)
def test_a_wrong_address_or_key_is_one_line(
    url: str, key: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", key)
    assert main([str(tmp_path / "p"), "--port", "0", "--no-browser", "--label-studio", url]) == 2
    line = capsys.readouterr().err
    assert told in line and line.startswith("error: --label-studio: ") and line.count("\n") == 1


def test_what_was_asked_before_a_kill_is_learned_by_the_next_studio(
    studio: Studio, source: FakeLabelStudio, runs: list[dict[str, Any]]
) -> None:
    source.add(1, BODY, WHEEL)
    facts = {"project": 3, "asked": 4, "answered": 3, "wanted": 4, "tasks": {}}
    files.write_json(studio.project.folder / "label-studio.json", facts)
    backend = Backend(studio, LabelStudio(HOST, "key", httpx2.MockTransport(source)))
    deadline = time.monotonic() + SECONDS
    while backend.version() != "cars version 1":
        assert time.monotonic() < deadline, backend.state()
        time.sleep(0.05)
    backend.close()


def test_parts_that_the_label_config_lacks_are_told(label_studio: TestClient, studio: Studio) -> None:
    studio.project.add_part("door")
    refused = connect(label_studio)
    assert refused.status_code == 400 and "lacks 'door', a part of this studio's project" in refused.json()["error"]


@pytest.mark.parametrize("extra", [{"steps": 7}, '{"steps": 7}'])
def test_the_number_of_steps_is_an_extra_parameter(
    extra: Any, label_studio: TestClient, source: FakeLabelStudio, runs: list[dict[str, Any]]
) -> None:
    assert connect(label_studio, extra=extra).status_code == 200
    source.add(1, BODY, WHEEL)
    finish(label_studio)
    settled(label_studio)
    words = next(job["words"] for job in runs if job["kind"] == "learn")
    assert words[words.index("--steps") + 1] == "7"
    refused = connect(label_studio, extra={"steps": "many"})
    assert refused.status_code == 400 and "steps: got 'many', expected a whole number" in refused.json()["error"]


def test_labels_by_any_names() -> None:
    labels = read_config(
        '<View><BrushLabels name="a b" toName="ö"><Label value=" Rad "/><Label value="Background"/></BrushLabels>'
        '<Image value="$image_url" name="ö"/></View>'
    )
    assert labels.parts == ("background", "Rad") and labels.key == "image_url" and labels.image == "ö"


def test_what_label_studio_sends_is_understood(
    label_studio: TestClient, source: FakeLabelStudio, studio: Studio, server: FakeTriton
) -> None:
    """Requests and an export of Label Studio 1.23.2, with the two annotated regions BODY and WHEEL."""
    text = (Path(__file__).parent / "label_studio_requests.json").read_text(encoding="utf-8")
    recorded: dict[str, Any] = json.loads(text.replace('"id":4,', '"id":3,').replace('"4.', '"3.'))
    setup = label_studio.post(f"{ADDRESS}/setup", json=recorded["setup"])
    assert setup.json() == {"model_version": "nothing learned yet"}
    (task,) = source.exported = recorded["export"]
    source.content[task["data"]["picture"]] = encoded(noise(HEIGHT, WIDTH, 1))
    for number, action in enumerate(("ANNOTATION_CREATED", "START_TRAINING"), 1):
        assert label_studio.post(f"{ADDRESS}/webhook", json=recorded[action]).status_code == 201
        state_when(label_studio, lambda state, wanted=number: state["model_version"] == f"cars version {wanted}")
    assert settled(label_studio)["refused"] == {}
    assert np.unique(studio.project.mask(f"task-{task['id']}")).tolist() == [0, 1, 2]
    (prediction,) = label_studio.post(f"{ADDRESS}/predict", json=recorded["predict"]).json()["results"]
    assert [each["value"]["brushlabels"] for each in prediction["result"]] == [["body"]]


def test_a_server_that_has_just_been_started_has_not_failed(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process has no command line yet when it has just begun, by which a later studio would find it."""
    studio.repository.mkdir()
    process = subprocess.Popen(["sleep", "60"])
    monkeypatch.setattr("slime_repository.layout.segmenters", lambda repository: ["car"])
    monkeypatch.setattr("slime_studio.processes.start", lambda words, log: process)
    studio.serving.start()
    assert studio.serving.state() == {"state": "starting"}
    process.kill()
    process.wait()
    assert studio.serving.state()["state"] == "failed"
