"""TLS, certificates and keys: who has them gets in, who has not does not, and nothing is ever sent in clear instead."""

from __future__ import annotations

import asyncio
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest
import trustme
from certificates import make
from fake_triton import FakeTriton

from slime_client import Access, Retry, Segmenter, SegmenterError, aio, segmenters
from slime_client.access import is_this_machine

ONCE = Retry(attempts=1)
KEY = "0123456789abcdef"


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls") / "pem"
    make(folder)
    return folder


Start = Callable[..., FakeTriton]


@pytest.fixture
def start(pem: Path) -> Iterator[Start]:
    """Starts a server that speaks TLS, and with `mutual` wants a certificate too."""
    running = []

    def started(*, mutual: bool = False) -> FakeTriton:
        pair = ((pem / "server-key.pem").read_bytes(), (pem / "server.pem").read_bytes())
        credentials = grpc.ssl_server_credentials([pair], (pem / "ca.pem").read_bytes() if mutual else None, mutual)
        server = FakeTriton()
        server.start(credentials)
        running.append(server)
        return server

    yield started
    for server in running:
        server.stop()


def mine(pem: Path, name: str = "client", **other: Any) -> Access:
    return Access(tls_ca=pem / "ca.pem", tls_cert=pem / f"{name}.pem", tls_key=pem / f"{name}-key.pem", **other)


def refused(server: FakeTriton, access: Access | None) -> SegmenterError:
    """The error of connecting, which is all that happens."""
    with pytest.raises(SegmenterError) as caught:
        Segmenter(server.url, "car", access=access, retry=ONCE, timeout=3)
    assert "\n" not in str(caught.value)
    return caught.value


def test_tls(start: Start, pem: Path, photo: Path) -> None:
    server = start()
    with Segmenter(server.url, "car", access=Access(tls_ca=pem / "ca.pem")) as car:
        assert car.segment(photo).array.any()


def test_mutual_tls(start: Start, pem: Path, photo: Path) -> None:
    server = start(mutual=True)
    with Segmenter(server.url, "car", access=mine(pem)) as car:
        assert car.segment(photo).array.any()
    for access in (Access(tls_ca=pem / "ca.pem"), mine(pem, "stranger")):
        assert refused(server, access).code == "UNAVAILABLE"


@pytest.mark.parametrize("mutual", [False, True])
def test_no_plain_text_where_the_server_speaks_tls(start: Start, mutual: bool) -> None:
    assert refused(start(mutual=mutual), None).code in ("UNAVAILABLE", "DEADLINE_EXCEEDED")


def test_no_plain_text_where_the_client_wants_tls(server: FakeTriton, pem: Path) -> None:
    for access in (Access(tls_ca=pem / "ca.pem"), Access(tls=True), mine(pem)):
        assert refused(server, access).code in ("UNAVAILABLE", "DEADLINE_EXCEEDED")


def test_a_server_that_a_stranger_vouches_for(start: Start, pem: Path) -> None:
    server = start()
    for access in (Access(tls_ca=pem / "stranger.pem"), Access(tls=True)):
        error = refused(server, access)
        assert error.code == "UNAVAILABLE"
        assert f"{server.url}: its certificate was signed by another authority" in str(error)
        assert str(error).endswith("give --tls-ca the certificate of the authority that signed it")


def test_what_is_wrong_with_a_connection_is_told(start: Start, server: FakeTriton, pem: Path, tmp_path: Path) -> None:
    """Each its own line; and at once, because trying again mends none of them."""
    foreign = trustme.CA()
    foreign.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate = foreign.issue_cert("other.example")
    elsewhere = FakeTriton()
    pair = (certificate.private_key_pem.bytes(), certificate.cert_chain_pems[0].bytes())
    elsewhere.start(grpc.ssl_server_credentials([pair]))
    web = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    trusting, mutual = Access(tls_ca=pem / "ca.pem"), start(mutual=True)
    cases = [
        (start().url, None, "speaks TLS, and closed the connection; give --tls-ca"),
        (mutual.url, trusting, "--tls-cert and --tls-key of its authority where it asks for a certificate"),
        (server.url, trusting, "speaks plain text, but TLS was asked for; leave out --tls"),
        (elsewhere.url, Access(tls_ca=tmp_path / "ca.pem"), "its certificate is for another host name; give --url"),
        (f"127.0.0.1:{web.server_port}", None, "is an HTTP port; give the server's gRPC address"),
        (f"127.0.0.1:{web.server_port}", trusting, "is an HTTP port; give the server's gRPC address"),
    ]
    for url, access, says in cases:
        with pytest.raises(SegmenterError) as caught:
            Segmenter(url, "car", access=access, retry=Retry(attempts=9, first=60, longest=60), timeout=600)
        assert caught.value.code == "UNAVAILABLE"
        assert str(caught.value).startswith(f"{url}: ") and says in str(caught.value)
    web.shutdown()
    web.server_close()
    elsewhere.stop()


def listed(server: FakeTriton, access: Access | None) -> list[str]:
    return [description.name for description in segmenters(server.url, access=access)]


def test_the_key_opens_what_is_restricted(server: FakeTriton, tmp_path: Path, photo: Path) -> None:
    server.wanted_key = ("triton-grpc-protocol-slime-key", KEY)
    file = tmp_path / "key"
    file.write_text(KEY + "\n")
    assert listed(server, Access(admin_key_file=file)) == ["car"]
    file.write_text("fedcba9876543210")
    missing, wrong = r"wants a key .*; give --admin-key-file", r"key: 127\.0\.0\.1:\d+ has another key; give the file"
    with pytest.raises(SegmenterError, match=wrong):
        asyncio.run(aio.segmenters(server.url, access=Access(admin_key_file=file)))
    for access, says in ((None, missing), (Access(admin_key_file=file), wrong)):
        with pytest.raises(SegmenterError, match=says) as caught:
            listed(server, access)
        assert caught.value.code == "UNAUTHENTICATED"
        assert KEY not in str(caught.value)
        with Segmenter(server.url, "car", access=access) as car:
            assert car.segment(photo).array.any()


def test_a_key_of_another_name(server: FakeTriton, tmp_path: Path) -> None:
    server.wanted_key = ("triton-grpc-protocol-ours", KEY)
    (tmp_path / "key").write_text(KEY)
    assert listed(server, Access(admin_key_file=tmp_path / "key", admin_key_name="Ours")) == ["car"]


@pytest.mark.parametrize("url", ["192.0.2.1:8001", "example.test:8001", "dns:///example.test:8001"])
def test_a_key_never_crosses_a_network_in_clear(url: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    access = Access(admin_key_file=tmp_path / "key")
    with pytest.raises(SegmenterError, match="in clear") as caught:
        access.metadata(url)
    assert caught.value.code == "INVALID_ARGUMENT"
    assert KEY not in str(caught.value)
    assert Access(tls=True, admin_key_file=tmp_path / "key").metadata(url) == [("triton-grpc-protocol-slime-key", KEY)]


@pytest.mark.parametrize("content", [b"", b" \n", b"two\nlines", "schlüssel".encode()])
def test_a_bad_key(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(SegmenterError, match="expected one line") as caught:
        Segmenter("localhost:1", "car", access=Access(admin_key_file=tmp_path / "key"))
    assert caught.value.code == "INVALID_ARGUMENT"


def test_files_that_are_missing(pem: Path, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    for access in (Access(tls_ca=nowhere), Access(tls_cert=nowhere, tls_key=nowhere), Access(admin_key_file=nowhere)):
        with pytest.raises(SegmenterError, match=r"nowhere: cannot be read \(No such file or directory\)"):
            Segmenter("localhost:1", "car", access=access)
    with pytest.raises(SegmenterError, match="expected both --tls-cert and --tls-key"):
        Access(tls_cert=pem / "client.pem")


def test_which_addresses_are_this_machine() -> None:
    for url in ("localhost:8001", "127.0.0.1:8001", "127.1.2.3:1", "[::1]:8001", "unix:/run/triton"):
        assert is_this_machine(url), url
    for url in ("10.0.0.1:8001", "localhost.example.test:8001", "[::2]:8001", "triton:8001"):
        assert not is_this_machine(url), url
