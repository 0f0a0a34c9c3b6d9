"""A repository in a store that speaks S3's protocol (moto's server), with cut connections, refusals and kills."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from exporting import Snapshot
from publishing import run
from s3_server import ENVIRONMENT, S3Server

from serving import ROOT
from slime_export.publish import pull, push
from slime_repository import object_store, synced
from slime_repository.errors import ObjectStoreError
from slime_repository.manifest import verify
from slime_repository.object_store import Generation, ObjectStore

PART_BYTES = 50_000
PARTS = 12
# The command line's, with parts as small as here.
COMMAND = f"""
import sys
from functools import partial
from slime_export.commands import repository
repository.ObjectStore = partial(repository.ObjectStore, part_bytes={PART_BYTES})
sys.exit(repository.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def running() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.close()


@pytest.fixture
def server(running: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": running.url}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(object_store, "_RETRIES_S", (0.01, 0.02))
    yield running
    running.reset()


@pytest.fixture
def store(server: S3Server) -> ObjectStore:
    bucket = f"b{uuid.uuid4().hex}"
    made = ObjectStore(f"s3://{bucket}/cars", part_bytes=PART_BYTES)
    made._fs.mkdir(bucket)
    made._fs.retries = 1
    server.reset()
    return made


@pytest.fixture
def one(tmp_path: Path) -> Path:
    """A repository with a network of twelve parts."""
    network = "".join(f"{number:>{PART_BYTES}}" for number in range(PARTS - 1)) + "the rest"
    run(tmp_path / "one", unet=network)
    return tmp_path / "one"


def pushed(repository: Path, store: ObjectStore) -> int:
    return push.push(repository, store, say=lambda _: None).sent


def pulled(store: ObjectStore, repository: Path) -> int:
    return pull.pull(store, repository, say=lambda _: None).received


def is_blob(path: str) -> bool:
    return "/blobs/" in path


def test_a_repository_goes_through_s3(tmp_path: Path, server: S3Server, store: ObjectStore, one: Path) -> None:
    sent = pushed(one, store)
    assert sent > (PARTS - 1) * PART_BYTES
    order = [path for method, path in server.requests if method == "PUT"]
    assert "/generations/00000001.json" in order[-1] and all(map(is_blob, order[:-1]))
    assert pulled(store, tmp_path / "other") == sent
    assert synced.contents(one) == synced.contents(tmp_path / "other") and verify(tmp_path / "other")
    server.reset()
    assert (pushed(one, store), pulled(store, tmp_path / "other")) == (0, 0)
    assert server.count("PUT", "") == server.count("GET", "/blobs/") == 0


def test_of_pushers_that_are_equally_fast_one_wins(store: ObjectStore) -> None:
    """S3 itself decides: each writes only where there is nothing yet."""
    generations = [Generation(number=1, files={}) for _ in range(4)]

    def put(generation: Generation) -> str:
        try:
            store.put(generation)
        except ObjectStoreError as error:
            assert "somebody else pushed generation 1 in the meantime" in str(error)
            return ""
        return generation.id

    with ThreadPoolExecutor(4) as pool:
        won = [each for each in pool.map(put, generations) if each]
    head = store.head()
    assert head and won == [head.id]


def test_a_write_whose_answer_was_lost_is_no_others(
    tmp_path: Path, server: S3Server, store: ObjectStore, one: Path
) -> None:
    """S3 took it, the connection broke, and the next attempt finds it there."""
    server.fault = lambda method, path: "lose" if method == "PUT" and "/generations/" in path else None
    pushed(one, store)
    assert server.count("PUT", "/generations/") > 1
    assert pulled(store, tmp_path / "other") > 0


@pytest.mark.parametrize("lasting", [False, True])
def test_a_connection_that_is_cut_in_the_middle(
    tmp_path: Path, server: S3Server, store: ObjectStore, one: Path, lasting: bool
) -> None:
    """Each part's first attempt: it is tried again. Or all from some moment on: it fails, and goes on from there."""
    other = tmp_path / "other"

    def cut(wanted: str) -> None:
        def fault(method: str, path: str) -> str | None:
            if method != wanted or not is_blob(path):
                return None
            late, first = server.count(method, "/blobs/") > PARTS // 2, server.requests.count((method, path)) == 1
            return "cut" if (late if lasting else first) else None

        server.reset()
        server.fault = fault

    everything = sum({each.sha256: each.bytes for each in synced.contents(one).files.values()}.values())
    cut("PUT")
    if lasting:
        with pytest.raises(ObjectStoreError, match=r"cannot write blobs/.* run again to go on"):
            pushed(one, store)
        assert store.head() is None
        with pytest.raises(ObjectStoreError, match="holds no repository yet"):
            pulled(store, other)
        server.reset()
    sent = pushed(one, store)
    assert 0 < sent < everything if lasting else sent == everything
    cut("GET")
    if lasting:
        with pytest.raises(ObjectStoreError, match=r"cannot read blobs/.* run again to go on"):
            pulled(store, other)
        assert not other.exists()
        server.reset()
    received = pulled(store, other)
    assert 0 < received < everything if lasting else received == everything
    assert synced.contents(one) == synced.contents(other) and verify(other)


@pytest.mark.parametrize(
    ("status", "advice"), [(403, "check what the credentials may do"), (503, ".* run again to go on")]
)
def test_a_store_that_refuses(
    tmp_path: Path,
    server: S3Server,
    store: ObjectStore,
    one: Path,
    snapshot: Callable[[Path], Snapshot],
    status: int,
    advice: str,
) -> None:
    before = {path: content for path, content in snapshot(one).items() if path != synced.FILE}
    for method, part in (("PUT", "/blobs/"), ("PUT", "/generations/"), ("GET", "/blobs/"), ("GET", "")):
        server.fault = lambda asked, path, method=method, part=part: (
            status if asked == method and part in path else None
        )
        action = pushed if method == "PUT" else lambda repository, store: pulled(store, tmp_path / "other")
        with pytest.raises(ObjectStoreError, match=rf"^store s3://\w+/cars: cannot .*\(.+\); {advice}$") as raised:
            action(one, store)
        assert ENVIRONMENT["AWS_SECRET_ACCESS_KEY"] not in str(raised.value)
        server.reset()
        if method == "PUT":
            assert store.head() is None
        if part == "/generations/":
            pushed(one, store)
    assert not (tmp_path / "other").exists()
    assert {path: content for path, content in snapshot(one).items() if path != synced.FILE} == before


@pytest.mark.parametrize("what", ["push", "pull"])
def test_what_is_killed_in_the_middle_goes_on(
    tmp_path: Path, server: S3Server, store: ObjectStore, one: Path, what: str, snapshot: Callable[[Path], Snapshot]
) -> None:
    other, method = tmp_path / "other", "PUT" if what == "push" else "GET"
    run(one, "horse")
    if what == "pull":
        run(tmp_path / "first", "horse")
        pushed(tmp_path / "first", store)
        pulled(store, other)
        push.push(one, store, replace=True, say=lambda _: None)
        server.reset()
    before = snapshot(other)
    words = ["push", str(one), store.url] if what == "push" else ["pull", store.url, str(other)]

    def command() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, *words],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    server.fault = lambda asked, path: (
        "hold" if asked == method and is_blob(path) and server.count(method, "/blobs/") > PARTS // 2 else None
    )
    with command() as killed:
        assert server.held.wait(60), killed.communicate()
        killed.kill()
    head = store.head()
    assert head is None if what == "push" else head and head.number == 2
    assert {path: content for path, content in snapshot(other).items() if not path.endswith(".pulled")} == before
    done = server.count(method, "/blobs/")
    server.release.set()
    server.reset()
    with command() as again:
        output, errors = again.communicate(timeout=60)
    assert again.returncode == 0, errors
    assert "generation" in output
    # What was under way is asked for again, and no more than that.
    everything = {sha256 for each in store.head().files.values() for sha256 in each.parts}
    assert server.count(method, "/blobs/") <= len(everything) - done + 2 * object_store.AT_ONCE
    pulled(store, other)
    assert synced.contents(one) == synced.contents(other) and verify(other)
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []
