"""Publishing to the container as it is started: in explicit mode, over mutual TLS, with the key, and never without."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from exporting import Exported

from charts import helm
from container import contained, write_secrets
from serving import metrics, png
from slime_client import Access, Segmenter
from slime_export.commands import repository as repository_command
from slime_export.errors import ServerError
from slime_export.options import ExportOptions
from slime_export.pipeline import export
from slime_export.proof import parity
from slime_repository import layout

NAMES = {"tls_ca": "tls-ca.pem", "tls_cert": "tls.pem", "tls_key": "tls.key", "admin_key_file": "admin-key"}


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_secrets(tmp_path_factory.mktemp("secrets"), authority="tls-ca.pem", certificate="tls.pem")


@pytest.mark.triton
@pytest.mark.usefixtures("without_tracing")
@pytest.mark.parametrize("exported", ["sd21"], indirect=True)
def test_publishing_and_rolling_back(exported: Exported, secrets: Path, tmp_path: Path) -> None:
    target = Path(shutil.copytree(exported.repository, tmp_path / "models"))
    (image,) = parity.random_images(np.random.default_rng(3), 1, 64)
    expected = exported.predictor.mask(image)
    access = Access(**{name: secrets / file for name, file in NAMES.items()})
    options = [word for name, file in NAMES.items() for word in (f"--{name.replace('_', '-')}", str(secrets / file))]
    with contained(target, tmp_path, secrets=secrets) as server, Segmenter(server.grpc, "car", access=access) as car:
        first = layout.versions(target / "car")[-1]
        request = ExportOptions(folder=exported.folder, repository=target, url=server.grpc, access=access)
        with pytest.raises(ServerError, match="give --admin-key-file"):
            export(replace(request, access=replace(access, admin_key_file=None)), lambda line: None)
        published, _ = export(request, lambda line: None)
        assert published.version == first + 1
        assert (car.segment(image).array == expected).mean() >= 0.999
        assert car.description.about["version"] == str(first + 1)
        assert repository_command.main(["rollback", str(target), "car", "--url", server.grpc, *options]) == 0
        assert (car.segment(image).array == expected).mean() >= 0.999
        assert car.description.about["version"] == str(first + 2)
        assert metrics(server)[f'slime_masks_total{{segmenter="car",version="{first + 2}"}}'] > 0


@pytest.mark.triton
@pytest.mark.slow
@pytest.mark.usefixtures("without_tracing")
@pytest.mark.parametrize("exported", ["sd21"], indirect=True)
def test_a_pod_of_the_chart_takes_up_what_is_pushed(exported: Exported, secrets: Path, tmp_path: Path) -> None:
    """Its first pull, its server, and the container beside it, each with the chart's own words."""
    source = Path(shutil.copytree(exported.repository, tmp_path / "source"))
    target, store = tmp_path / "models", f"file://{tmp_path}/store"
    values = {"store": {"url": store, "watchSeconds": 1}, "adminKey": {"secret": "key"}, "tls": {"insecure": True}}
    with helm() as ask:
        text = ask("render", values)["slime-serve/templates/deployment.yaml"]
    pod = yaml.safe_load(text)["spec"]["template"]["spec"]
    triton, pull = pod["containers"]
    (first,) = pod["initContainers"]
    program = str(Path(sys.executable).with_name("slime"))

    def words(container: dict[str, list[str]], grpc: str = "") -> list[str]:
        here = {
            "127.0.0.1:8001": grpc,
            "/data/models": str(target),
            "/run/secrets/admin-key": str(secrets / "admin-key"),
        }
        return [program, *(here.get(word, word) for word in container["args"])]

    def push() -> None:
        subprocess.run([program, "repository", "push", str(source), store], check=True, timeout=120)

    push()
    subprocess.run(words(first), check=True, timeout=120)
    key = tmp_path / "secrets"
    key.mkdir()
    shutil.copy(secrets / "admin-key", key)
    with contained(target, tmp_path, *triton["args"], secrets=key) as server, Segmenter(server.grpc, "car") as car:
        before = layout.versions(target / "car")[-1]
        beside = subprocess.Popen(words(pull, server.grpc))
        try:
            export(ExportOptions(folder=exported.folder, repository=source), lambda line: None)
            push()
            image = png(np.zeros((40, 50, 3), np.uint8))
            deadline = time.monotonic() + 120
            while car.description.about["version"] != str(before + 1):
                assert time.monotonic() < deadline and beside.poll() is None
                car.segment(image)
        finally:
            beside.terminate()
            beside.wait(60)
