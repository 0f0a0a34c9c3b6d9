"""One client before several servers: one is killed, one told to stop, one takes a new version, and nothing is lost."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from asking import Pixels, in_process, picture
from toy import described_repository
from tritonclient import grpc

from container import contained
from serving import Served, metrics, served
from slime_client import Access, Segmenter, SegmenterError
from slime_export.publish.server_control import Server as Publisher
from slime_repository import config

pytestmark = [pytest.mark.triton, pytest.mark.slow, pytest.mark.alone]
CLIENTS = 6
PATIENCE_S = 120.0


class Load:
    """Clients that ask through one segmenter until the block ends, and what became of each request."""

    def __init__(self, url: str, image: Pixels, expected: Pixels) -> None:
        self.segmenter = Segmenter(url, "toy", timeout=PATIENCE_S)
        self.image, self.right, self.wrong = image, 0, 0
        self.errors: list[str] = []
        self._expected = expected
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self.segmenter.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                same = np.array_equal(self.segmenter.segment(self.image).array, self._expected)
            except SegmenterError as error:
                self.errors.append(f"{error.code}: {error}")
                return
            with self._lock:
                self.right += same
                self.wrong += not same


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)


def masks(server: Served) -> float:
    return sum(value for name, value in metrics(server).items() if name.startswith("slime_masks_total"))


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[Served]]:
    """The launcher's, and two as containers have them, each with a repository of its own."""
    repositories = [described_repository(tmp_path / str(number) / "models") for number in range(3)]
    key = tmp_path / "secrets"
    key.mkdir()
    (key / "admin-key").write_text("k" * 32)
    with ExitStack() as stack:
        # The shortest life of a connection: clients have to find their way again and again.
        age = "--grpc-max-connection-age=2000"
        yield [
            stack.enter_context(served(repositories[0], "--probe", "3600", f"--triton={age}")),
            *(stack.enter_context(contained(each, each.parent, age, secrets=key)) for each in repositories[1:]),
        ]


def publish(server: Served, repository: Path, key: Path) -> None:
    """A second version, with the steps that publishing takes at the server."""
    text = (repository / "toy" / "config.pbtxt").read_text()
    (repository / "toy" / "2").mkdir()
    (repository / "toy" / "config.pbtxt").write_text(config.with_parameter(text, "version", "2"))
    Publisher(server.grpc, Access(admin_key_file=key)).load("toy")
    with grpc.InferenceServerClient(server.grpc) as client:
        assert "2" in client.get_model_metadata("toy").versions


def test_nothing_is_lost(servers: list[Served], tmp_path: Path) -> None:
    launched, killed, kept = servers
    image = picture(60, 80)
    expected, _ = in_process(tmp_path / "0" / "models", image)
    url = f"ipv4:{','.join(each.grpc for each in servers)}"
    with Load(url, image, expected) as load:
        until(lambda: all(masks(each) > 20 for each in servers))
        counts = [masks(each) for each in servers]
        assert min(counts) > 0.5 * max(counts), f"not spread: {counts}"

        os.killpg(killed.launcher.pid, signal.SIGKILL)
        killed.launcher.wait()
        seen = load.right
        until(lambda: load.right > seen + 50)

        publish(kept, tmp_path / "2" / "models", tmp_path / "secrets" / "admin-key")
        seen = load.right
        until(lambda: load.right > seen + 50)
        assert metrics(kept)['slime_masks_total{segmenter="toy",version="2"}'] > 0

        launched.launcher.send_signal(signal.SIGTERM)
        assert launched.launcher.wait(PATIENCE_S) == 0
        seen, alone = load.right, masks(kept)
        until(lambda: load.right > seen + 50)
        assert masks(kept) >= alone + 50
    assert not load.errors and not load.wrong
