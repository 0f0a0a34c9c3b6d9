"""Who may ask what: nothing in plain text where TLS is wanted, nothing without the key where one is."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
from asking import picture
from toy import described_repository
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

import slime_client
from serving import Served, png, served
from slime_client import Access
from slime_export.errors import ExportError, ServerError
from slime_export.publish.server_control import Server as Publisher
from slime_serve import Security, UsageError

KEY = "k" * 32
# As the server's own certificate calls it; 0.0.0.0 is all addresses, 127.0.0.2 one that only gRPC listens on.
OTHER_ADDRESS = "127.0.0.2"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem, server.pem/.key, client.pem/.key, and the admin key."""
    folder = tmp_path_factory.mktemp("pem")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    for name, subject in (("server", OTHER_ADDRESS), ("client", "client.example")):
        issued = authority.issue_cert(subject)
        issued.private_key_pem.write_to_path(folder / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
    (folder / "admin").write_text(f"{KEY}\n")
    return folder


def tls(files: Path, *more: str) -> list[str]:
    return [
        "--listen",
        "0.0.0.0",
        "--tls-cert",
        f"{files}/server.pem",
        "--tls-key",
        f"{files}/server.key",
        *more,
    ]


@pytest.fixture(scope="module")
def tls_server(toy_repository: Path, files: Path) -> Iterator[Served]:
    """TLS, no key file."""
    with served(toy_repository, *tls(files)) as server:
        yield server


@pytest.fixture(scope="module")
def mutual_server(files: Path) -> Iterator[Served]:
    """Mutual TLS, and a key."""
    repository = described_repository(files / "repository")
    more = ("--tls-ca", f"{files}/ca.pem", "--admin-key-file", f"{files}/admin")
    with served(repository, *tls(files, *more)) as server:
        yield server


@pytest.fixture(scope="module")
def key_server(toy_repository: Path, files: Path) -> Iterator[Served]:
    """On the loopback, with a key."""
    with served(toy_repository, "--admin-key-file", f"{files}/admin") as server:
        yield server


def url(server: Served) -> str:
    """From outside, as it were."""
    return f"{OTHER_ADDRESS}:{server.grpc.rpartition(':')[2]}"


def segment(address: str, **options: Any) -> tuple[int, ...]:
    image = grpc.InferInput("IMAGE", [1], "BYTES")
    image.set_data_from_numpy(np.array([png(picture(20, 30))], dtype=object))
    with grpc.InferenceServerClient(address, **options) as client:
        answer = client.infer("toy", [image], outputs=[grpc.InferRequestedOutput("MASK")], client_timeout=20)
    return tuple(answer.as_numpy("MASK").shape)


def options(files: Path, *, certificate: bool = False) -> dict[str, Any]:
    own = {"private_key": f"{files}/client.key", "certificate_chain": f"{files}/client.pem"} if certificate else {}
    return {"ssl": True, "root_certificates": f"{files}/ca.pem", **own}


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(InferenceServerException) as caught:
        call()
    assert str(caught.value.status()) in ("StatusCode.UNAVAILABLE", "StatusCode.UNAUTHENTICATED")
    return str(caught.value.message())


@pytest.mark.triton
def test_tls(tls_server: Served, files: Path) -> None:
    assert segment(url(tls_server), **options(files)) == (20, 30)


@pytest.mark.triton
def test_no_plain_text_where_there_is_tls(tls_server: Served, mutual_server: Served) -> None:
    for server in (tls_server, mutual_server):
        refused(lambda server=server: segment(url(server)))


@pytest.mark.triton
def test_no_stranger_where_there_is_mutual_tls(mutual_server: Served, files: Path, tmp_path: Path) -> None:
    assert segment(url(mutual_server), **options(files, certificate=True)) == (20, 30)
    refused(lambda: segment(url(mutual_server), **options(files)))
    stranger = trustme.CA().issue_cert("client.example")
    stranger.private_key_pem.write_to_path(tmp_path / "client.key")
    stranger.cert_chain_pems[0].write_to_path(tmp_path / "client.pem")
    foreign = options(tmp_path, certificate=True) | {"root_certificates": f"{files}/ca.pem"}
    refused(lambda: segment(url(mutual_server), **foreign))


@pytest.mark.triton
def test_http_and_metrics_stay_at_home(tls_server: Served) -> None:
    for address in (tls_server.http, tls_server.metrics):
        assert address.startswith("127.0.0.1:")
        with pytest.raises(urllib.error.URLError, match="refused"):
            urllib.request.urlopen(f"http://{OTHER_ADDRESS}:{address.rpartition(':')[2]}/metrics", timeout=5)


CALLS: dict[str, Callable[[Any], Any]] = {
    "load": lambda client: client.load_model("toy"),
    "load code": lambda client: client.load_model(
        "mine", config='{"backend": "python"}', files={"file:1/model.py": b""}
    ),
    "unload": lambda client: client.unload_model("toy"),
    "index": lambda client: client.get_model_repository_index(),
    "register memory": lambda client: client.register_system_shared_memory("mine", "/mine", 64),
    "memory status": lambda client: client.get_system_shared_memory_status(),
    "forget memory": lambda client: client.unregister_system_shared_memory(),
    "trace": lambda client: client.update_trace_settings(settings={"trace_level": "TENSORS"}),
    "read trace": lambda client: client.get_trace_settings(),
    "log": lambda client: client.update_log_settings({"log_verbose_level": 1}),
    "read log": lambda client: client.get_log_settings(),
}


@pytest.mark.triton
@pytest.mark.parametrize("call", CALLS)
def test_nothing_changes_the_server_without_the_key(key_server: Served, call: str) -> None:
    with grpc.InferenceServerClient(key_server.grpc) as client:
        assert "restricted" in refused(lambda: CALLS[call](client))
    assert key_server.segment("toy", png(picture(20, 30))).shape == (20, 30)


@pytest.mark.triton
def test_an_open_server_has_a_key_that_nobody_knows(tls_server: Served, files: Path) -> None:
    with grpc.InferenceServerClient(url(tls_server), **options(files)) as client:
        for call in CALLS.values():
            assert "restricted" in refused(lambda call=call: call(client))


@pytest.mark.triton
def test_the_key_opens(key_server: Served, files: Path) -> None:
    Publisher(key_server.grpc, Access(admin_key_file=files / "admin")).load("toy")
    with pytest.raises(ServerError, match="load of toy is restricted; give --admin-key-file"):
        Publisher(key_server.grpc).load("toy")
    (files / "wrong").write_text(KEY[1:])
    with pytest.raises(ServerError, match=r"wrong: .* has another key; give the file"):
        Publisher(key_server.grpc, Access(admin_key_file=files / "wrong")).load("toy")
    for address in (key_server.http, key_server.metrics):
        with pytest.raises(ServerError, match=f"{address}: is an HTTP port; give the server's gRPC address"):
            Publisher(address)
    wrong = {"triton-grpc-protocol-slime-key": KEY[1:]}
    with grpc.InferenceServerClient(key_server.grpc) as client:
        refused(lambda: client.load_model("toy", headers=wrong))


def test_publishing_to_several_servers_at_once_is_refused() -> None:
    """The load would reach one of them."""
    with pytest.raises(ExportError, match="names several servers, expected one"):
        Publisher("ipv4:127.0.0.1:1,127.0.0.1:2")


@pytest.mark.triton
def test_publishing_over_mutual_tls(mutual_server: Served, files: Path) -> None:
    certificates = {"tls_ca": files / "ca.pem", "tls_cert": files / "client.pem", "tls_key": files / "client.key"}
    Publisher(url(mutual_server), Access(admin_key_file=files / "admin", **certificates)).load("toy")
    with pytest.raises(ServerError, match="restricted"):
        Publisher(url(mutual_server), Access(**certificates)).load("toy")


@pytest.mark.triton
@pytest.mark.parametrize(
    "path",
    ["repository/index", "repository/models/toy/unload", "systemsharedmemory/status", "trace/setting", "logging"],
)
def test_http_wants_the_key_as_well(key_server: Served, path: str) -> None:
    method = "GET" if path.endswith(("status", "setting", "logging")) else "POST"

    def status(headers: dict[str, str]) -> int:
        request = urllib.request.Request(f"http://{key_server.http}/v2/{path}", method=method, headers=headers)
        if method == "POST":
            request.data = json.dumps({}).encode()
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    assert status({}) == 403
    assert status({"slime-key": "wrong"}) == 403
    if "unload" not in path:
        assert status({"slime-key": KEY}) == 200


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"listen": "0.0.0.0"}, "--insecure"),
        ({"listen": "everywhere"}, "IPv4 address"),
        ({"listen_http": "::"}, "--listen-http: got '::', expected an IPv4 address"),
        ({"tls_cert": "server.pem"}, "both"),
        ({"tls_ca": "ca.pem"}, "--tls-cert"),
        ({"tls_cert": "server.pem", "tls_key": "admin"}, "PEM"),
        ({"tls_cert": "server.pem", "tls_key": "missing"}, "cannot be read"),
        ({"tls_cert": "server.pem", "tls_key": "server.key", "insecure": True}, "contradicts"),
    ],
)
def test_options_that_are_refused(files: Path, given: dict[str, Any], says: str) -> None:
    settings = {name: files / value if name.startswith("tls") else value for name, value in given.items()}
    with pytest.raises(UsageError, match=says) as caught:
        Security(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "short", "x" * 20 + ",all=1", "ä" * 20])
def test_weak_keys(tmp_path: Path, content: str) -> None:
    (tmp_path / "key").write_text(content)
    with pytest.raises(UsageError, match="16 to 512"):
        Security(admin_key_file=tmp_path / "key").key()


def test_no_key_on_the_loopback_unless_asked_for() -> None:
    assert Security().key() is None
    assert Security().arguments(None) == []
    unknown = Security(listen="0.0.0.0", insecure=True)
    assert unknown.key() != unknown.key()


@pytest.mark.triton
def test_the_client_of_ours_over_mutual_tls(mutual_server: Served, files: Path) -> None:
    address, ca = url(mutual_server), files / "ca.pem"
    access = Access(
        tls_ca=ca, tls_cert=files / "client.pem", tls_key=files / "client.key", admin_key_file=files / "admin"
    )
    with slime_client.Segmenter(address, "toy", access=access) as segmenter:
        assert segmenter.segment(picture(20, 30)).array.shape == (20, 30)
    assert [each.name for each in slime_client.segmenters(address, access=access)] == ["toy"]
    once = slime_client.Retry(attempts=1)
    for less in (Access(tls_ca=ca), Access()):
        with pytest.raises(slime_client.SegmenterError) as caught:
            slime_client.Segmenter(address, "toy", access=less, retry=once, timeout=5)
        assert caught.value.code == "UNAVAILABLE"
