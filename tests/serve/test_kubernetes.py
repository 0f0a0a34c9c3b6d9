"""The chart and KServe's files: every values file makes valid manifests, whose commands run here on the wheel's server.

Helm itself renders the chart (helm-python-sdk), and Kubernetes' own schemas come with kubernetes-validate. Those of
KEDA, the Prometheus operator and KServe are in custom_resources.json, which has what is used of them. No cluster is
needed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from asking import picture
from toy import described_repository

import slime_client
from charts import CHART, Ask, HelmError, helm
from container import ENTRY, contained, write_secrets

EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))
CUSTOM = json.loads((Path(__file__).parent / "custom_resources.json").read_text())
KUBERNETES = ("1.29", "1.37")  # the oldest that the chart takes, and the newest that there is
LEAST: dict[str, Any] = {"store": {"url": "s3://a/b"}, "adminKey": {"secret": "key"}, "tls": {"insecure": True}}
Manifest = dict[str, Any]


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    with helm() as asked:
        yield asked


@pytest.fixture(scope="module")
def render(ask: Ask) -> Callable[[Mapping[str, Any]], list[Manifest]]:
    """Values to manifests, as `helm install slime serve/kubernetes --namespace vision` makes them."""

    def rendered(values: Mapping[str, Any]) -> list[Manifest]:
        return [each for text in ask("render", values).values() for each in yaml.safe_load_all(text) if each]

    return rendered


def of_kind(manifests: list[Manifest], kind: str) -> Manifest:
    (found,) = [each for each in manifests if each["kind"] == kind]
    return found


def example(name: str) -> Any:
    return yaml.safe_load((CHART / "examples" / f"{name}.yaml").read_text())


def kserve(name: str) -> Manifest:
    found: Manifest = yaml.safe_load((CHART / "kserve" / f"{name}.yaml").read_text())
    return found


def containers(manifest: Manifest) -> list[Manifest]:
    pod = manifest["spec"].get("template", manifest)["spec"]
    return [*pod.get("initContainers", []), *pod["containers"]]


def pod_of(runtime: Manifest) -> Manifest:
    """What KServe makes of a runtime, as far as Kubernetes knows it."""
    spec = {name: runtime["spec"][name] for name in ("containers", "volumes")}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "slime"}, "spec": spec}


def check(manifest: Manifest) -> None:
    name = f"{manifest['apiVersion']} {manifest['kind']}"
    assert set(manifest) <= {"apiVersion", "kind", "metadata", "spec", "data"}
    if name in CUSTOM:
        jsonschema.validate(manifest["spec"], CUSTOM[name])
        return
    for version in KUBERNETES:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_helm_has_nothing_to_complain_of(ask: Ask) -> None:
    """Of the whole chart; that it has no icon is a remark."""
    found = ask("lint", example("full"))
    assert not found["errors"] and not [each for each in found["messages"] if each["severity"] > 1], found


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_values_file_makes_valid_manifests(path: Path, render: Callable[..., list[Manifest]]) -> None:
    manifests = render(yaml.safe_load(path.read_text()))
    kinds = {each["kind"] for each in manifests}
    assert {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"} <= kinds
    if path.stem == "full":
        assert {"ScaledObject", "PodMonitor", "PrometheusRule", "ConfigMap"} <= kinds
    for each in manifests:
        check(each)


def test_kserves_files_are_valid() -> None:
    runtime, service = kserve("runtime"), kserve("service")
    for each in (runtime, service, pod_of(runtime)):
        check(each)
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"]["name"] == runtime["spec"]["supportedModelFormats"][0]["name"]


def test_an_invalid_manifest_is_found(render: Callable[..., list[Manifest]]) -> None:
    """The schemas are strict: a word that nobody knows, and a number where a word belongs."""
    for values, kind, change in (
        (LEAST, "Deployment", {"replica": 1}),
        (LEAST, "NetworkPolicy", {"policyTypes": 1}),
        (example("full"), "ScaledObject", {"maxReplicas": 1}),
    ):
        broken = of_kind(render(values), kind)
        broken["spec"] |= change
        with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
            check(broken)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "expected one of store.url and volume.claim"),
        ({"store": {"url": "bucket"}}, "does not match pattern"),
        ({"replica": 3}, "additional properties 'replica' not allowed"),
        ({"gpus": -1}, "minimum"),
        ({"image": {"repository": "slime-serve", "tag": "latest"}}, "'not' failed"),
        ({**LEAST, "tls": {}}, "expected tls.secret, or tls.insecure=true"),
        ({**LEAST, "tls": {"secret": "tls", "insecure": True}}, "contradicts tls.secret"),
        ({**LEAST, "tls": {"mutual": True, "insecure": True}}, "tls.mutual needs tls.secret"),
        ({**LEAST, "adminKey": {"secret": ""}}, "store.url needs adminKey.secret"),
        ({**LEAST, "autoscaling": {"enabled": True}}, "needs autoscaling.prometheus"),
        ({**LEAST, "autoscaling": {"minReplicas": 9}}, "minReplicas above maxReplicas"),
        ({**LEAST, "drain": {"preStopSeconds": 10}}, "preStopSeconds of connectionAgeSeconds at least"),
    ],
)
def test_values_that_are_refused(values: dict[str, Any], said: str, render: Callable[..., list[Manifest]]) -> None:
    with pytest.raises(HelmError, match=said):
        render(values)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_pods_have_no_rights_and_leave_gracefully(path: Path, render: Callable[..., list[Manifest]]) -> None:
    deployment = of_kind(render(yaml.safe_load(path.read_text())), "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
    for each in containers(deployment):
        assert each["securityContext"]["readOnlyRootFilesystem"]
        assert each["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert not each["securityContext"]["allowPrivilegeEscalation"]
        assert each["resources"]["limits"]["memory"]
    triton = pod["containers"][0]
    (repository,) = [each for each in triton["volumeMounts"] if each["name"] == "repository"]
    assert repository["readOnly"]
    # Kubernetes waits for preStop, then for Triton.
    (age,) = [int(each.partition("=")[2]) / 1000 for each in triton["args"]]
    stops = int(triton["lifecycle"]["preStop"]["exec"]["command"][1])
    environment = {each["name"]: each["value"] for each in triton["env"]}
    assert age <= stops < stops + int(environment["SLIME_DRAIN"]) < pod["terminationGracePeriodSeconds"]
    gpus = triton["resources"]["limits"].get("nvidia.com/gpu", 0)
    assert gpus == (0 if path.stem == "cpu" else 1)
    assert ("replicas" in deployment["spec"]) == (path.stem != "full")
    service = of_kind(render(yaml.safe_load(path.read_text())), "Service")
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["selector"].items() <= (
        deployment["spec"]["template"]["metadata"]["labels"].items()
    )


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The entries of the two secrets, as cert-manager and an operator would make them, under their own names."""
    return write_secrets(tmp_path_factory.mktemp("secrets"), authority="ca.crt", certificate="tls.crt")


def projected(pod: Manifest, entries: Path, folder: Path) -> Path:
    """The folder of secrets as the pod sees it."""
    folder.mkdir()
    for volume in pod["volumes"]:
        for source in volume.get("projected", {}).get("sources", []):
            for item in source["secret"]["items"]:
                shutil.copy(entries / item["key"], folder / item["path"])
    return folder


def probed(container: Manifest, http: str) -> list[str]:
    """What each probe of the container says of the server that answers HTTP there."""
    found = []
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        program, script, *words = container[name]["exec"]["command"]
        assert (program, Path(script).parent) == ("python3", Path("/opt/slime"))
        options = [word for word in words if word.startswith("--")]
        command = [sys.executable, "-S", str(ENTRY.with_name(Path(script).name)), *options, http]
        found.append(subprocess.run(command, capture_output=True, text=True, timeout=60).stdout)
    return found


@pytest.mark.triton
def test_what_the_chart_starts_serves_here(
    render: Callable[..., list[Manifest]], secrets: Path, tmp_path: Path
) -> None:
    """Triton's arguments, environment, secrets and probes, with mutual TLS; the options of what loads new versions."""
    pod = of_kind(render(example("full")), "Deployment")["spec"]["template"]["spec"]
    triton, pull = pod["containers"]
    folder = projected(pod, secrets, tmp_path / "secrets")
    environment = {each["name"]: each["value"] for each in triton["env"]}
    data = Path(environment["SLIME_REPOSITORY"])
    assert data.parent == Path("/data")  # beside it publishing prepares what it renames into it
    repository = described_repository(tmp_path / data.relative_to("/"))
    environment |= {"SLIME_REPOSITORY": str(repository), "SLIME_METRICS_ADDRESS": "127.0.0.1"}
    with contained(repository, tmp_path, *triton["args"], secrets=folder, environment=environment) as server:
        assert probed(triton, server.http) == ["healthy: toy\n"] * 3
        options = dict(zip(pull["args"], pull["args"][1:], strict=False))
        assert options["--url"] == "slime.vision.svc:8001" and pod["hostAliases"][0]["hostnames"] == [
            "slime.vision.svc"
        ]
        names = ("tls_ca", "tls_cert", "tls_key", "admin_key_file")
        files = {name: folder / Path(options[f"--{name.replace('_', '-')}"]).name for name in names}
        access = slime_client.Access(**files)
        assert [each.name for each in slime_client.segmenters(server.grpc, access=access)] == ["toy"]
        with slime_client.Segmenter(server.grpc, "toy", access=access) as toy:
            assert toy.segment(picture(20, 30)).array.shape == (20, 30)


@pytest.mark.triton
def test_what_kserve_starts_serves_here(toy_repository: Path, tmp_path: Path) -> None:
    (container,) = kserve("runtime")["spec"]["containers"]
    ports = dict(each.removeprefix("--").split("=") for each in container["args"])
    assert ports == {"grpc-port": str(container["ports"][0]["containerPort"]), "http-port": "8080"}
    assert all(each["exec"]["command"][-1] == "127.0.0.1:8080" for name, each in container.items() if "Probe" in name)
    environment = {each["name"]: each["value"] for each in container["env"]}
    assert environment["SLIME_REPOSITORY"] == "/mnt/models"
    with contained(toy_repository, tmp_path) as server:
        assert probed(container, server.http) == ["healthy: toy\n"] * 3
