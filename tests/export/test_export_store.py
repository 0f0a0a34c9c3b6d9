"""A repository in an object store: what travels, who wins, and that neither failures nor kills leave half of anything.

The networks are a few bytes here. The store is a folder or in memory; test_export_store_s3.py has one of S3.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from exporting import Snapshot
from publishing import FakeServer, assert_all_or_nothing, assert_servable, assert_taken_back, killed, run

from serving import ROOT
from slime_export.commands import repository as command
from slime_export.publish.maintenance import remove, rollback
from slime_export.publish.pull import Pulled, pull
from slime_export.publish.push import push
from slime_repository import layout, manifest, synced
from slime_repository.errors import ObjectStoreError, RepositoryError
from slime_repository.object_store import Generation, ObjectStore, in_order


def quiet(_: str) -> None:
    pass


@pytest.fixture
def store() -> ObjectStore:
    return ObjectStore(f"memory://{uuid.uuid4().hex}/cars")


def pushed(repository: Path, store: ObjectStore, **options: bool) -> int:
    """Push, and return the bytes that travelled."""
    return push(repository, store, say=quiet, **options).sent


def pulled(store: ObjectStore, repository: Path, server: FakeServer | None = None, **options: bool) -> Pulled:
    return pull(store, repository, lambda: server, say=quiet, **options)


def assert_same(one: Path, other: Path) -> None:
    assert synced.contents(one) == synced.contents(other)
    assert_servable(other)
    assert [each.name for each in other.parent.iterdir() if each.name.startswith(".")] == []


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind", ["file", "memory"])
def test_only_what_is_new_travels(tmp_path: Path, kind: str, shared: bool) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    store = ObjectStore(f"file://{tmp_path}/a store" if kind == "file" else f"memory://{uuid.uuid4().hex}")
    run(one, shared=shared)
    everything = sum(
        each.bytes for each in {each.sha256: each for each in synced.contents(one).files.values()}.values()
    )
    assert pushed(one, store) == everything == pulled(store, other).received
    assert_same(one, other)
    assert pushed(one, store) == 0
    assert pulled(store, other) == Pulled(generation=1, changed=False)
    run(one, unet="another network", shared=shared)
    sent = pushed(one, store)
    assert len("another network") * (not shared) < sent < 0.3 * everything
    assert pulled(store, other).received == sent
    assert_same(one, other)


def test_the_store_can_be_read_by_its_own_description(tmp_path: Path) -> None:
    """What others have to know of it, and what a later release has to read."""
    run(tmp_path / "one")
    pushed(tmp_path / "one", ObjectStore(f"file://{tmp_path}/store"))
    told = json.loads((tmp_path / "store/generations/00000001.json").read_text())
    published = json.loads((tmp_path / "one/manifest.json").read_text())["files"]
    assert (told["format"], told["generation"], told["files"]) == (1, 1, published)
    for each in published.values():
        content = tmp_path / "store/blobs/sha256" / each["sha256"][:2] / each["sha256"]
        assert manifest.entry(content).sha256 == each["sha256"]


def test_a_running_server_tries_and_loads_what_is_new_as_at_a_publication(tmp_path: Path, store: ObjectStore) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    server = FakeServer(other)
    run(one)
    pushed(one, store)

    def calls() -> list[str]:
        server.calls.clear()
        pulled(store, other, server)
        assert_same(one, other)
        return server.calls

    networks = ["load car_unet", "load preprocess", "load vae_encoder", "load was"]
    assert calls() == [*networks, "try car on unet 1", "load car"]
    run(one)
    pushed(one, store)
    assert calls() == ["load car_unet", "try car on unet 2", "load car"]
    for _ in range(3):
        run(one)
    run(one, "horse")
    pushed(one, store)
    # Three are loaded until the ensemble has left the one it is pinned to.
    tried = ["try car on unet 5", "load car", "try horse on unet 1", "load horse"]
    assert calls() == ["load car_unet", "load horse_unet", *tried, "load car_unet"]
    assert server.loaded["car_unet"][0] == [4, 5]
    rollback(one, "car", say=quiet)
    remove(one, "horse", say=quiet)
    pushed(one, store)
    assert calls() == ["load car_unet", "try car on unet 6", "load car", "unload horse", "unload horse_unet"]
    remove(one, "car", say=quiet)
    run(one, unet="made anew, and version 1 again")
    pushed(one, store)
    gone = ["unload car", "unload car_unet"]
    assert calls() == [*gone, "load car_unet", "try car on unet 1", "load car"]


def test_shared_segmenters_are_tried_under_a_hidden_name_and_come_and_go_as_files(
    tmp_path: Path, store: ObjectStore
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    server = FakeServer(other)
    run(one, "first", shared=True)
    pushed(one, store)
    pulled(store, other, server)
    (group,) = layout.groups(one)
    loads = [f"load {model}" for model in layout.models(one) if model != group]
    assert server.calls == [*loads, f"load {group}", "try first"]
    server.calls.clear()
    for _ in range(2):
        run(one, "second", shared=True)
    run(one, "first", shared=True)
    pushed(one, store)
    pulled(store, other, server)
    assert server.calls == ["try .first", "try .second"]
    assert_same(one, other)
    remove(one, "first", say=quiet)
    pushed(one, store)
    pulled(store, other, server)
    assert_same(one, other)
    assert not list((other / "segmenters").rglob("*first*"))


@pytest.mark.parametrize(("existing", "shared"), [(0, False), (2, False), (2, True)])
def test_a_pull_that_fails_at_any_step_changes_nothing(
    tmp_path: Path,
    store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    snapshot: Callable[[Path], Snapshot],
    existing: int,
    shared: bool,
) -> None:
    one, other = changed(tmp_path, store, existing, shared)

    def without_downloads(folder: Path) -> Snapshot:
        """What came stays for the next attempt."""
        return {path: content for path, content in snapshot(folder).items() if not path.endswith(".pulled")}

    assert_all_or_nothing(other, without_downloads, monkeypatch, lambda: pulled(store, other))
    assert_same(one, other)


def changed(tmp_path: Path, store: ObjectStore, existing: int, shared: bool) -> tuple[Path, Path]:
    """A repository that was pushed, and another that is some generations behind, or not there."""
    one, other = tmp_path / "one", tmp_path / "other"
    for number in range(existing):
        run(one, shared=shared)
        run(one, f"old{number}", shared=shared)
        pushed(one, store)
        pulled(store, other)
    for _ in range(2):
        run(one, shared=shared)
    for name in ["old0"] * bool(existing):
        remove(one, name, say=quiet)
    run(one, "new", shared=shared)
    pushed(one, store)
    return one, other


@pytest.mark.parametrize(("existing", "shared"), [(0, False), (2, False), (2, True)])
def test_a_pull_that_is_killed_at_any_step_goes_on(
    tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, existing: int, shared: bool
) -> None:
    step, codes = 0, {9}
    one, behind = changed(tmp_path, store, existing, shared)
    while codes == {9}:
        step += 1
        other = tmp_path / str(step) / "other"
        shutil.copytree(behind, other) if existing else other.parent.mkdir()
        codes = {killed(step, lambda other=other: pulled(store, other), monkeypatch)}
        if other.exists():
            assert_servable(other)
        if codes == {9} and (other / synced.FILE).exists() and synced.read(other, store.url).pulling:
            with pytest.raises(RepositoryError, match="a pull into it was interrupted"):
                pushed(other, store)
        # All was there already, but for a configuration that differed for as long as more versions were loaded.
        assert pulled(store, other).received <= max(path.stat().st_size for path in one.glob("*/config.pbtxt"))
        assert_same(one, other)
        pushed(other, store)
    assert codes == {0}
    assert step > 4


@pytest.mark.parametrize("fails_at", ["load car_unet", "try car on unet 2", "load car", "unload horse"])
def test_what_the_server_refuses_is_taken_back(
    tmp_path: Path, store: ObjectStore, snapshot: Callable[[Path], Snapshot], fails_at: str
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    server = FakeServer(other)
    for name in ("car", "horse"):
        run(one, name)
    pushed(one, store)
    pulled(store, other, server)
    run(one)
    remove(one, "horse", say=quiet)
    pushed(one, store)
    (tmp_path / ".other.pulled").mkdir()  # what came is kept there
    loaded = assert_taken_back(server, snapshot, fails_at, lambda: pulled(store, other, server))
    assert {model: config for model, (_, config) in server.loaded.items()} == {
        model: config for model, (_, config) in loaded.items()
    }
    pulled(store, other, server)
    assert synced.contents(one) == synced.contents(other)


def test_of_two_pushers_one_wins_and_the_other_is_told(
    tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    run(one)
    pushed(one, store)
    pulled(store, other)
    run(one, unet="of one")
    run(other, unet="of the other")
    put = store.put

    def late(generation: Generation) -> None:
        monkeypatch.setattr(store, "put", put)
        pushed(one, store)  # while the other is just before its last step
        put(generation)

    monkeypatch.setattr(store, "put", late)
    with pytest.raises(ObjectStoreError, match="somebody else pushed generation 2 in the meantime"):
        pushed(other, store)
    with pytest.raises(ObjectStoreError, match=r"generation 2 of 20.* is not from repository .*other"):
        pushed(other, store)
    head = store.head()
    assert head and head.digest == synced.contents(one).digest
    with pytest.raises(RepositoryError, match="has changes that were never pushed"):
        pulled(store, other)
    pulled(store, other, replace=True)
    assert_same(one, other)
    run(other)
    pushed(other, store)
    with pytest.raises(ObjectStoreError, match="generation 3"):
        pushed(one, store)
    pushed(one, store, replace=True)
    pulled(store, other)
    assert_same(one, other)


def test_a_push_that_was_killed_after_the_store_took_it_is_known_again(
    tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = tmp_path / "one"
    run(one)
    put = store.put

    def killed_after(generation: Generation) -> None:
        put(generation)
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "put", killed_after)
    with pytest.raises(KeyboardInterrupt):
        pushed(one, store)
    monkeypatch.setattr(store, "put", put)
    run(one)
    pushed(one, store)
    head = store.head()
    assert head and head.number == 2


def test_what_is_damaged_is_neither_pushed_nor_pulled(
    tmp_path: Path, snapshot: Callable[[Path], Snapshot], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other, store = tmp_path / "one", tmp_path / "other", ObjectStore(f"file://{tmp_path}/store")
    run(one)
    network = one / "car_unet/1/model.onnx"
    content = network.read_bytes()
    network.write_bytes(content[::-1])
    with pytest.raises(RepositoryError, match=r"car_unet/1/model\.onnx is not what was published"):
        pushed(one, store)
    assert store.head() is None
    network.write_bytes(content)
    pushed(one, store)
    sha256 = manifest.entry(network).sha256
    (blob,) = (tmp_path / "store/blobs").rglob(sha256)
    for damage in (content[::-1], content[:3], None):
        blob.unlink()
        if damage is not None:
            blob.write_bytes(damage)
        with pytest.raises(ObjectStoreError, match=f"{sha256} is .*push --replace from a repository that has the file"):
            pulled(store, other)
        assert not other.exists()
    assert pushed(one, store, replace=True) == len(content)
    pulled(store, other)
    assert_same(one, other)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda told: told["files"].update({"../../evil": told["files"]["car/config.pbtxt"]}), "is no file of a model"),
        (lambda told: told["files"].update({"/etc/evil": told["files"]["car/config.pbtxt"]}), "is no file of a model"),
        (lambda told: told["folders"].append("car/../.."), "is no file of a model"),
        (lambda told: told["files"]["car/config.pbtxt"].update(sha256="../../evil"), "is no SHA-256"),
        (lambda told: told["files"]["car/config.pbtxt"].update(parts=["a" * 64] * 2), "has 2 parts"),
        (lambda told: told["files"].pop("car/config.pbtxt"), "car has no version or no config"),
        (lambda told: told.update(format=2), "format 2, expected 1"),
        (lambda told: told.clear(), "cannot be read"),
    ],
)
def test_a_generation_that_nobody_pushed_is_refused(
    tmp_path: Path, change: Callable[[dict[str, object]], object], complaint: str
) -> None:
    store = ObjectStore(f"file://{tmp_path}/store")
    run(tmp_path / "one")
    pushed(tmp_path / "one", store)
    file = tmp_path / "store/generations/00000001.json"
    told = json.loads(file.read_text())
    change(told)
    file.write_text(json.dumps(told))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ObjectStoreError, match=complaint):
        pulled(store, tmp_path / "other")
    assert sorted(tmp_path.rglob("*")) == before


def test_no_more_parts_are_in_memory_than_are_under_way() -> None:
    alive: set[int] = set()

    def parts() -> Iterator[int]:
        for number in range(50):
            alive.add(number)
            assert len(alive) <= 5
            yield number

    for done in in_order(lambda number: number, parts(), at_once=4):
        alive.remove(done)
    assert not alive


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (("push", "REPO", "bucket/prefix"), 2, "store bucket/prefix: is no address"),
        (("push", "REPO", "nowhere://bucket"), 2, "store nowhere://bucket: cannot be used"),
        (("push", "REPO", "s3://name:hunter2@bucket"), 2, "the address holds a name or a password"),
        (("push", "REPO/none", "memory://x"), 2, "no such folder"),
        (("push", "EMPTY", "memory://x"), 2, "no segmenters in it; publish one with export/build.py first"),
        (("pull", "memory://nothing", "REPO"), 1, "store memory://nothing: holds no repository yet"),
        (("pull", "gs://bucket", "REPO"), 2, "pip install 'slime-serve[gcs]'"),
        (("pull", "memory://x", "REPO", "--watch", "0"), 2, "got 0, expected seconds"),
    ],
)
def test_mistakes_are_told_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    code: int,
    line: str,
) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    run(tmp_path / "repository")
    (tmp_path / "empty").mkdir()
    places = {"REPO": tmp_path / "repository", "REPO/none": tmp_path / "none", "EMPTY": tmp_path / "empty"}
    try:
        got = command.main([str(places.get(word, word)) for word in words])
    except SystemExit as error:
        got = error.code
    told = capsys.readouterr().err
    assert got == code
    assert line in told and told.startswith("error: ") and told.count("\n") == 1
    assert "hunter2" not in told


def test_a_watch_waits_for_a_store_follows_it_and_ends_when_it_is_told_to(tmp_path: Path) -> None:
    one, other, url = tmp_path / "one", tmp_path / "other", f"file://{tmp_path}/store"
    words = [sys.executable, str(ROOT / "export/repository.py"), "pull", url, str(other), "--watch", "0.05"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stdout and watching.stderr
        try:
            assert "holds no repository yet" in watching.stderr.readline()
            for generation in (1, 2):
                run(one)
                pushed(one, ObjectStore(url))
                assert f"is generation {generation} of {url}" in watching.stdout.readline()
                assert_same(one, other)
        finally:
            watching.send_signal(signal.SIGTERM)
        assert watching.wait(30) == 0
