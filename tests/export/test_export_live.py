"""Publishing to the real server while it answers requests: no gap, and no lasting harm from a version that is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from exporting import Exported, Snapshot, annotated
from tritonclient import grpc

from serving import Asking, Served, metrics, png, served
from slime_client import Segmenter
from slime_export.errors import QualityError, ServerError
from slime_export.options import ExportOptions
from slime_export.pipeline import export
from slime_export.proof import parity, references
from slime_export.publish import guard
from slime_export.publish.maintenance import rollback
from slime_export.publish.pull import pull
from slime_export.publish.push import push
from slime_export.publish.server_control import Server
from slime_optimize.evaluation import read_data
from slime_repository import contract, layout, synced
from slime_repository.object_store import ObjectStore
from slime_repository.record import Check

pytestmark = pytest.mark.triton


def served_version(server: Served) -> str:
    with grpc.InferenceServerClient(server.grpc) as client:
        version = max(client.get_model_metadata("car").versions, key=int)
    return str(version)


@pytest.mark.usefixtures("without_tracing")
@pytest.mark.parametrize("exported", ["sd21"], indirect=True)
def test_publishing_to_a_server_that_answers(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, snapshot: Callable[[Path], Snapshot]
) -> None:
    target = shutil.copytree(exported.repository, tmp_path / "repository")
    (image,) = parity.random_images(np.random.default_rng(3), 1, 64)
    expected = exported.predictor.mask(image)

    with served(target) as server:
        request = ExportOptions(folder=exported.folder, repository=target, url=server.grpc)
        first = layout.versions(target / "car")[-1]
        leave_a_trial(server)
        with Asking(server, image) as asking:
            for version in (first + 1, first + 2):
                published, _ = export(request, lambda line: None)
                assert (published.version, served_version(server)) == (version, str(version))
                with Segmenter(server.grpc, "car") as car:
                    assert car.description.image_seconds  # As the new version's trial took.
        found, masks = metrics(server), 'slime_masks_total{segmenter="car",version="%d"}'
        assert [found[masks % version] > 0 for version in (first, first + 1)] == [True, True]
        before = found.get(masks % (first + 2), 0)
        assert (server.segment("car", png(image)) == expected).mean() >= 0.999
        assert metrics(server)[masks % (first + 2)] == before + 1
        assert not loaded_on_trial(server)
        with Segmenter(server.grpc, "car") as car:
            about = car.description.about
        assert (about["version"], about["published"][:2]) == (str(first + 2), "20")
        assert len(layout.versions(target / "car_unet")) == 2
        refuse_a_worse_one(request, exported, tmp_path / "data", image)

        before = snapshot(target)
        with Asking(server, image) as refusing:
            refuse_a_wrong_unet(request, monkeypatch)
            # Triton would drop the name for the moment until the one before is back; it never sees this under the name.
            refuse_a_broken_ensemble(request, monkeypatch)
        assert snapshot(target) == before
        assert served_version(server) == str(first + 2)
        assert not asking.errors + refusing.errors
        for each in (asking, refusing):
            assert len(each.masks) > 3
            assert min((mask == expected).mean() for mask in each.masks) >= 0.999
        assert (server.segment("car", png(image)) == expected).mean() >= 0.999


@pytest.mark.usefixtures("without_tracing")
@pytest.mark.parametrize("exported", ["sd21"], indirect=True)
def test_a_server_of_another_machine_follows_an_object_store(exported: Exported, tmp_path: Path) -> None:
    target, other = shutil.copytree(exported.repository, tmp_path / "repository"), tmp_path / "other"
    store = ObjectStore(f"file://{tmp_path}/store")
    (image,) = parity.random_images(np.random.default_rng(3), 1, 64)
    expected = exported.predictor.mask(image)
    push(target, store, say=lambda line: None)
    pull(store, other, say=lambda line: None)
    with served(other) as server:
        with Asking(server, image) as asking:
            # The second time two versions come at once, and more are loaded than Triton otherwise keeps.
            for rollbacks in (0, 2):
                for _ in range(rollbacks):
                    rollback(target, "car", say=lambda line: None)
                if not rollbacks:
                    export(ExportOptions(folder=exported.folder, repository=target), lambda line: None)
                push(target, store, say=lambda line: None)
                pull(store, other, lambda: Server(server.grpc), say=lambda line: None)
                assert int(served_version(server)) == layout.versions(target / "car")[-1]
        assert synced.contents(target) == synced.contents(other)
        assert not asking.errors
        assert len(asking.masks) > 3
        assert min((mask == expected).mean() for mask in asking.masks) >= 0.999


def leave_a_trial(server: Served) -> None:
    """As a publication does that is killed while its version is tried."""
    with grpc.InferenceServerClient(server.grpc) as client:
        trial = {**client.get_model_config("car", as_json=True)["config"], "name": "car.next"}
        client.load_model("car.next", config=json.dumps(trial), files={"file:1/version": b"1"})
    assert loaded_on_trial(server)


def loaded_on_trial(server: Served) -> list[str]:
    with grpc.InferenceServerClient(server.grpc) as client:
        models = client.get_inference_statistics().model_stats
    return [each.name for each in models if each.name.endswith(".next")]


def refuse_a_worse_one(request: ExportOptions, exported: Exported, folder: Path, image: npt.NDArray[np.uint8]) -> None:
    """--not-worse asks the server, whose masks are the truth here."""
    annotated(folder, exported.predictor, [image])
    data = read_data(folder, exported.predictor.segmenter.parts)
    wanted, lines = replace(request, data=folder, not_worse=True), list[str]()
    guard.require_good(wanted, 100.0, data, lines.append)
    assert lines == [f"mean IoU on 1 images of {folder}: 100.0 % of version 3, which serves, 100.0 % of the new one"]
    with pytest.raises(QualityError, match=r"is worse than version 3, .* \(50\.0 % mean IoU on 1 images of"):
        guard.require_good(wanted, 50.0, data, lines.append)


def refuse_a_wrong_unet(request: ExportOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(references, "Check", lambda **k: Check(**{**k, "mask_HW": k["mask_HW"] + 1}))
        with pytest.raises(ServerError, match=r"car's next version answers .* with a mask of which 0.00 %"):
            export(request, lambda line: None)


def refuse_a_broken_ensemble(request: ExportOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        real = contract.ensemble_config
        patch.setattr(contract, "ensemble_config", lambda **k: real(**k).replace('key: "MASK"', 'key: "NONE"'))
        with pytest.raises(ServerError, match="load of car's next version failed"):
            export(request, lambda line: None)
