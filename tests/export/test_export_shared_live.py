"""The shared form on the real server: many segmenters at once, new ones live at once, wrong ones never."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import numpy.typing as npt
import pytest
import torch
from exporting import shared_segmenter

from backbones import build
from serving import ROOT, Served, metrics, served
from slime_client import Retry, SegmenterError
from slime_client import Segmenter as Client
from slime_export.errors import ExportError, ServerError
from slime_export.forms import group_of
from slime_export.graph import onnx_export as onnx
from slime_export.graph.networks import Encoder, SharedUNet
from slime_export.graph.tracing import encoder_signature, shared_unet_signature
from slime_export.proof.parity import random_images
from slime_export.publish import maintenance
from slime_export.publish.lock import staging
from slime_export.publish.maintenance import remove, rollback
from slime_export.publish.publication import Candidate
from slime_export.publish.publication import publish as published
from slime_export.publish.pull import pull
from slime_export.publish.push import push
from slime_export.publish.server_control import Server
from slime_optimize.backbone import Backbone, load_backbone
from slime_optimize.method.prediction import Predictor
from slime_optimize.segmenter import Segmenter
from slime_repository import layout, listing, shared_store
from slime_repository.manifest import verify
from slime_repository.object_store import ObjectStore
from slime_repository.record import Check, png
from slime_repository.variant import Variant

pytestmark = pytest.mark.triton
FORM = Variant(maps="weighted")
IMAGE = random_images(np.random.default_rng(5), 1, 96)[0]


class Publisher:
    """Publishes into one repository; the networks are traced with the first segmenter."""

    def __init__(self, root: Path) -> None:
        self.backbone: Backbone = load_backbone(build(root / "backbone", "sd15", 0))
        self.repository = root / "repository"

    def segmenter(self, seed: int, parts: int = 4) -> Segmenter:
        return shared_segmenter(self.backbone, seed, parts, {"threshold": 0.0})

    def mask(self, segmenter: Segmenter) -> npt.NDArray[np.uint8]:
        return Predictor(segmenter, self.backbone).mask(IMAGE)

    def __call__(
        self, name: str, segmenter: Segmenter, url: str | None = None, expected: npt.NDArray[np.uint8] | None = None
    ) -> int:
        mask_HW = self.mask(segmenter) if expected is None else expected
        check = Check(image=png(IMAGE), mask_HW=mask_HW, agreement=0.99, training_image=False)
        with staging(self.repository) as staged:
            candidate = Candidate(
                shared=True,
                name=name,
                segmenter=segmenter,
                variant=FORM,
                check=check,
                **self._traced(staged, segmenter),
            )
            return published(self.repository, staged, candidate, Server(url) if url else None, keep=3).version

    def _traced(self, staged: Path, segmenter: Segmenter) -> dict[str, Path | None]:
        if layout.groups(self.repository):
            return {"unet": None, "encoder": None}
        folders: dict[str, Path | None] = {"unet": staged / ".unet", "encoder": staged / ".encoder"}
        for folder in folders.values():
            assert folder
            folder.mkdir()
        group = group_of(segmenter, FORM)
        onnx.write(
            SharedUNet(segmenter, self.backbone, 8, weighted=True), shared_unet_signature(group), staged / ".unet"
        )
        onnx.write(
            Encoder(self.backbone),
            encoder_signature(self.backbone.image_size, self.backbone.latent_size),
            staged / ".encoder",
        )
        return folders


@pytest.fixture(scope="module")
def publish(tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    torch.set_num_threads(1)
    publisher = Publisher(tmp_path_factory.mktemp("shared"))
    publisher("one", publisher.segmenter(1))
    return publisher


@pytest.fixture(scope="module")
def server(publish: Publisher) -> Iterator[Served]:
    with served(publish.repository) as running:
        yield running


def test_a_segmenter_is_live_as_soon_as_it_is_published(publish: Publisher, server: Served) -> None:
    assert server.segmenters == ("one",)
    two = publish.segmenter(2, 6)
    models = set(publish.repository.iterdir())
    publish("two", two, server.grpc)
    assert set(publish.repository.iterdir()) == models  # a file, and no model
    with Client(server.grpc, "two") as client:
        answer = client.segment(png(IMAGE))
        assert client.parts == two.parts
        assert client.description.image_seconds  # The group's, which the launcher measured.
    assert (np.asarray(answer.array) == publish.mask(two)).mean() > 0.999
    with Client(server.grpc, "one") as client:
        assert (np.asarray(client.segment(png(IMAGE)).array) == publish.mask(publish.segmenter(1))).mean() > 0.999


def test_the_containers_health_check_asks_one_of_them(server: Served) -> None:
    command = [sys.executable, "-S", str(ROOT / "serve" / "health.py"), server.http]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("healthy: shared_"), done.stderr


def test_a_new_version_is_followed_by_clients_that_are_connected(publish: Publisher, server: Served) -> None:
    publish("again", publish.segmenter(3, 3), server.grpc)
    with Client(server.grpc, "again") as client:
        assert len(client.segment(png(IMAGE)).parts) == 3
        assert publish("again", publish.segmenter(4, 5), server.grpc) == 2
        answer = client.segment(png(IMAGE))
        assert len(answer.parts) == 5
        assert (np.asarray(answer.array) == publish.mask(publish.segmenter(4, 5))).mean() > 0.999


def test_one_that_answers_wrongly_is_never_seen(publish: Publisher, server: Served) -> None:
    wrong = np.full_like(publish.mask(publish.segmenter(5)), 3)
    before = sorted(publish.repository.rglob("*"))
    with pytest.raises(ServerError, match="expected at least 99 %"):
        publish("wrong", publish.segmenter(5), server.grpc, expected=wrong)
    assert sorted(publish.repository.rglob("*")) == before
    with pytest.raises(SegmenterError, match="wrong"):
        Client(server.grpc, "wrong")


def test_different_segmenters_asked_at_once_answer_as_alone(publish: Publisher, server: Served) -> None:
    names = [f"many{seed}" for seed in range(8)]
    for seed, name in enumerate(names):
        publish(name, publish.segmenter(20 + seed), server.grpc)
    expected = {name: publish.mask(publish.segmenter(20 + seed)) for seed, name in enumerate(names)}

    def ask(name: str) -> float:
        with Client(server.grpc, name) as client:
            return min(float((client.segment(png(IMAGE)).array == expected[name]).mean()) for _ in range(6))

    with ThreadPoolExecutor(len(names)) as pool:
        assert min(pool.map(ask, names)) > 0.999


def test_requests_are_counted_by_segmenter(publish: Publisher, server: Served) -> None:
    for version in ("1", "2"):
        publish("counted", publish.segmenter(6), server.grpc)
        with Client(server.grpc, "counted") as client:
            for _ in range(3):
                client.segment(png(IMAGE))
            about = client.description.about
        assert (str(about["version"]), about["published"][:2]) == (version, "20")
        labels = f'{{segmenter="counted",version="{version}"}}'
        found = metrics(server)
        assert found[f"slime_masks_total{labels}"] == found[f"slime_request_seconds_count{labels}"] == 3
        assert found[f"slime_request_seconds_sum{labels}"] > 0
        assert 0 < found[f"slime_margin_total{labels}"] <= 3


def test_rollback_publishes_old_content_anew_and_removal_takes_it_away(publish: Publisher, server: Served) -> None:
    for seed in (30, 31):
        publish("back", publish.segmenter(seed), server.grpc)
    assert rollback(publish.repository, "back", say=quiet) == (1, 3)
    with pytest.raises(ExportError, match=r"no version 9 in repository .* kept: 2; publish it again"):
        rollback(publish.repository, "back", 9, say=quiet)
    with pytest.raises(ExportError, match=r"segmenters there: .*back"):
        rollback(publish.repository, "nothing", say=quiet)
    (row,) = [row for row in listing.rows(publish.repository, Server(server.grpc).states()) if row.name == "back"]
    assert (row.version, row.rolled_back_to, row.versions, row.state) == (3, 1, (2, 3), "ready")
    assert (row.form, row.maps, len(row.parts)) == ("shared", "weighted", 4) and row.bytes < 1e6
    with Client(server.grpc, "back") as client:
        assert (client.segment(png(IMAGE)).array == publish.mask(publish.segmenter(30))).mean() > 0.999
        assert remove(publish.repository, "back", say=quiet) == ["back"]
        with pytest.raises(SegmenterError, match="back"):
            client.segment(png(IMAGE))


def test_another_server_follows_an_object_store(publish: Publisher, tmp_path: Path) -> None:
    """A segmenter comes, one answers wrongly, and one is removed, while another is asked all the time."""
    store, other = ObjectStore(f"file://{tmp_path}/store"), tmp_path / "other"
    push(publish.repository, store, say=quiet)
    pull(store, other, say=quiet)
    words = [sys.executable, str(ROOT / "export/repository.py"), "pull", store.url, str(other), "--watch", "0.1"]
    with served(other) as server, Client(server.grpc, "one") as one, ThreadPoolExecutor(1) as pool:
        stop, expected = Event(), one.segment(png(IMAGE)).array
        asked = pool.submit(lambda: [one.segment(png(IMAGE)).array for _ in iter(stop.is_set, True)])
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen([*words, "--url", server.grpc], **pipes) as watching:
            try:
                publish("late", publish.segmenter(40))
                push(publish.repository, store, say=quiet)
                assert "is generation 2 of file://" in watching.stdout.readline()
                with Client(server.grpc, "late") as late:
                    assert (late.segment(png(IMAGE)).array == publish.mask(publish.segmenter(40))).mean() > 0.999
                    wrong = np.full_like(publish.mask(publish.segmenter(41)), 3)
                    publish("wrong", publish.segmenter(41), expected=wrong)
                    push(publish.repository, store, say=quiet)
                    while "expected at least 99 %" not in watching.stderr.readline():
                        assert watching.poll() is None
                    with pytest.raises(SegmenterError, match="wrong"):
                        Client(server.grpc, "wrong")
                    for name in ("wrong", "late"):
                        remove(publish.repository, name, say=quiet)
                    push(publish.repository, store, say=quiet)
                    assert "is generation 4 of file://" in watching.stdout.readline()
                    with pytest.raises(SegmenterError, match="late"):
                        late.segment(png(IMAGE))
            finally:
                watching.terminate()
                stop.set()
        assert watching.returncode == 0
        masks = asked.result()
    assert len(masks) > 3 and all((mask == expected).all() for mask in masks)


def quiet(_: str) -> None:
    pass


def older(repository: Path, *models: str) -> None:
    """The models' latest versions as if their code were older than this project's."""
    for model in models:
        folder = repository / model
        path = folder / str(layout.versions(folder)[-1]) / "model.py"
        path.write_text(path.read_text() + "\nOLDER = True\n")
    (repository / "manifest.json").unlink()
    with maintenance.changing(repository, None, 10.0, quiet):
        pass  # writes a manifest of what is there


def test_a_group_is_upgraded_while_it_answers(publish: Publisher, server: Served) -> None:
    repository, url = publish.repository, server.grpc
    older(repository, "segmenters", "was")
    (group,) = layout.groups(repository)
    before = layout.pinned(repository / group)
    expected = publish.mask(publish.segmenter(1))
    with ThreadPoolExecutor(1) as pool, Client(url, "one") as client:
        asked = Event()
        answers = pool.submit(lambda: [client.segment(png(IMAGE)).array for _ in iter(asked.is_set, True)])
        try:
            outcomes = maintenance.upgrade(repository, ["one"], Server(url), say=quiet)
        finally:
            asked.set()
            masks = answers.result()
    after = layout.pinned(repository / group)
    assert {model: after[model] - before[model] for model in after if after[model] != before[model]} == {
        "segmenters": 1,
        "was": 1,
    }
    assert {each.name for each in outcomes} == set(shared_store.names(repository)) and not any(
        each.reason for each in outcomes
    )
    assert min((mask == expected).mean() for mask in masks) > 0.999 and len(masks) > 1
    assert verify(repository)


def test_a_group_is_upgraded_without_a_server_unless_one_of_it_would_answer_otherwise(
    publish: Publisher, tmp_path: Path
) -> None:
    repository = Path(shutil.copytree(publish.repository, tmp_path / "repository"))
    older(repository, "segmenters", "was")
    (group,) = layout.groups(repository)
    before = layout.pinned(repository / group)
    mask = repository / "segmenters" / "checks" / "one" / "1" / "mask.png"
    right = mask.read_bytes()
    for content, line in (
        (png(np.full((96, 96), 77, np.uint8)), "one answers a generated image"),
        (None, "was not kept"),
    ):
        if content:
            mask.write_bytes(content)
        else:
            mask.parent.rename(tmp_path / "kept")
        outcomes = maintenance.upgrade(repository, say=quiet)
        assert outcomes and all(line in each.reason for each in outcomes)
        assert layout.pinned(repository / group) == before
    (tmp_path / "kept").rename(mask.parent)
    mask.write_bytes(right)
    assert not any(each.reason for each in maintenance.upgrade(repository, say=quiet))
    assert layout.pinned(repository / group)["was"] == before["was"] + 1


def test_the_manifest_holds(publish: Publisher) -> None:
    told = json.loads((publish.repository / "manifest.json").read_text())
    assert any("segmenters/store/one.safetensors" in path for path in told["files"])


def test_a_baked_name_is_not_taken(publish: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slime_repository.layout.segmenters", lambda _: ["one"])
    with pytest.raises(ExportError, match=r"one: is in repository .* with its embedding baked in"):
        publish("one", publish.segmenter(1))


def test_a_shared_name_is_not_taken(publish: Publisher, tmp_path: Path) -> None:
    segmenter = publish.segmenter(1)
    check = Check(image=png(IMAGE), mask_HW=publish.mask(segmenter), agreement=0.99, training_image=False)
    candidate = Candidate(name="one", segmenter=segmenter, unet=tmp_path, encoder=None, check=check)
    with staging(publish.repository) as staged, pytest.raises(ExportError, match=r"one: is in .* in the shared form"):
        published(publish.repository, staged, candidate)


def test_what_has_no_place_is_refused_at_once(server: Served) -> None:
    """Pictures of which reading takes longer than the networks do."""
    photo = png(np.tile(random_images(np.random.default_rng(6), 1, 300)[0], (10, 10, 1)))
    with Client(server.grpc, "one", retry=Retry(attempts=1)) as client:
        answers = [client.submit(photo) for _ in range(60)]
        failures = [error for error in (answer.exception() for answer in answers) if error is not None]
        assert 20 < len(failures) < 60
        assert all("Exceeds maximum queue size" in str(error) for error in failures)
        assert np.array_equal(client.segment(png(IMAGE)).array, client.segment(png(IMAGE)).array)
    assert metrics(server)['slime_overload_refusals_total{model="segmenters"}'] == len(failures)
