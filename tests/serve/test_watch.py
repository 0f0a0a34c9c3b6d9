"""When the launcher probes its server, and when it starts it again, in a time of the test's own."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from slime_repository.contents import Served
from slime_serve import old_triton
from slime_serve import watch as watch_module
from slime_serve.control import UnansweredError
from slime_serve.watch import Watch

IMAGE_S, EVERY_S, BATCH = 10.0, 5.0, 8


class Clock:
    """Stands in for the module `time`; only the test moves it on."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


class FakeServer:
    """A server as the launcher's `Control` sees it: it computes up to BATCH of the ``waiting`` images at a time."""

    def __init__(self, clock: Clock, waiting: int = 0) -> None:
        self.clock, self.waiting, self.probes = clock, waiting, 0
        self.answered, self.batch, self.ready_at, self.comes_at = 1, 0, 0.0, 0.0
        self.is_hung = self.is_silent = self.is_failing = False
        self.failed = 0
        self.dead: list[str] = []
        self.reloads: list[str] = []

    def counts(self, timeout: float) -> tuple[int, int, int]:
        if self.is_silent:
            self.clock.now += timeout
            raise UnansweredError("no answer")
        if not self.is_hung and self.batch and self.clock.now >= self.ready_at:
            self.answered, self.batch = self.answered + self.batch, 0
        if self.clock.now < self.comes_at:
            return self.answered, 0, 0
        if not self.batch and self.waiting:
            self.batch = min(self.waiting, BATCH)
            self.waiting, self.ready_at = self.waiting - self.batch, self.clock.now + self.batch * IMAGE_S
        self.failed += self.is_failing
        return self.answered, self.failed, self.batch + self.waiting

    def probe(self, served: Served, timeout: float) -> float:
        self.probes += 1
        if self.is_failing:
            raise UnansweredError("Stub process 'vae_encoder_0_0' is not healthy.")
        if self.is_hung:
            self.clock.now += timeout
            raise UnansweredError("no answer")
        self.clock.now += IMAGE_S
        self.answered += 1
        return IMAGE_S

    def unready(self) -> list[str]:
        return self.dead

    def reload(self, model: str) -> None:
        self.reloads.append(model)
        self.dead.remove(model)


class Immediate:
    """Stands in for a ThreadPoolExecutor: a task is done when it is submitted."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def submit(self, task: Callable[..., Any], *given: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(task(*given))
        except UnansweredError as error:
            future.set_exception(error)
        return future

    def shutdown(self, **_: object) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(watch_module, "ThreadPoolExecutor", Immediate)
    clock = Clock()
    monkeypatch.setattr(watch_module, "time", clock)
    return clock


def watched(server: FakeServer, seconds: float, version: str = "2.51.0") -> str | None:
    """Why the launcher would start the server again, within so many seconds; None where it would not."""
    with (
        listening() as address,
        contextlib.closing(
            Watch(
                os.getpid(),
                server,  # type: ignore[arg-type]
                version=version,
                grpc=address,
                probes=lambda: (Served(ensemble="car"),),
                every=EVERY_S,
                seconds={"car": IMAGE_S},
                say=lambda line: None,
            )
        ) as watch,
    ):
        end = server.clock.now + seconds
        while server.clock.now < end:
            if reason := watch.look():
                return reason
            server.clock.now += 1
    return None


@contextlib.contextmanager
def listening() -> Iterator[Any]:
    with socket.create_server(("127.0.0.1", 0), backlog=2000) as listener:
        yield listener.getsockname()


def test_an_idle_server_is_probed_seldom(clock: Clock) -> None:
    server = FakeServer(clock)
    assert watched(server, 120 * IMAGE_S) is None
    assert server.probes == 2


@pytest.mark.parametrize("waiting", [1, 2, 8, 24])
@pytest.mark.parametrize("idle_before", [0, 30 * IMAGE_S])
def test_a_server_that_computes_is_not_probed(clock: Clock, waiting: int, idle_before: float) -> None:
    server = FakeServer(clock, waiting)
    server.comes_at = clock.now + idle_before
    assert watched(server, idle_before + waiting * IMAGE_S + 4 * EVERY_S) is None
    assert (server.answered, server.probes) == (1 + waiting, 0)


@pytest.mark.parametrize("waiting", [1, 2])
def test_a_hung_server_is_found_within_some_of_its_image_times(clock: Clock, waiting: int) -> None:
    server, begun = FakeServer(clock, waiting), clock.now
    server.is_hung = True
    assert "probes in a row failed" in str(watched(server, 100 * IMAGE_S))
    assert clock.now - begun < (10 + 2 * waiting) * IMAGE_S


def test_a_server_that_answers_nothing_is_found(clock: Clock) -> None:
    server, begun = FakeServer(clock), clock.now
    server.is_silent = True
    assert watched(server, 100 * IMAGE_S)
    assert clock.now - begun < 6 * IMAGE_S


def test_a_process_that_is_stopped_is_found(clock: Clock) -> None:
    """Triton then fails what it is asked at once, as if the process had died: nothing is in the networks."""
    server, begun = FakeServer(clock), clock.now
    server.is_failing = True
    assert "not healthy" in str(watched(server, 100 * IMAGE_S))
    assert clock.now - begun < 6 * IMAGE_S


def test_an_image_that_is_lost_in_the_counts_costs_one_probe(clock: Clock) -> None:
    """Somebody asked who a segmenter is, or a model was loaded again."""
    server = FakeServer(clock)
    counts = server.counts
    server.counts = lambda timeout: (counts(timeout)[0], 0, 1)  # type: ignore[method-assign]
    assert watched(server, 40 * IMAGE_S) is None
    assert server.probes == 1


@pytest.mark.parametrize(
    ("version", "is_asked"), [("2.51.0", False), ("2.64.0", False), ("2.65.0", True), ("2.75.0", True)]
)
def test_a_newer_triton_is_asked_whose_processes_died(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, version: str, is_asked: bool
) -> None:
    """An older one does not know: its processes are looked at from outside, which a newer one is spared."""
    looked_at: list[int] = []

    class Outside(old_triton.DeadStubs):
        def __init__(self, pid: int) -> None:
            super().__init__(pid)
            looked_at.append(pid)

    monkeypatch.setattr(watch_module, "DeadStubs", Outside)
    server = FakeServer(clock)
    server.dead = ["was"]
    assert watched(server, 6 * EVERY_S, version) is None
    assert server.reloads == ["was"] * is_asked
    assert bool(looked_at) != is_asked


@pytest.mark.parametrize(
    ("version", "model", "starts_again"),
    [
        ("2.51.0", "preprocess", True),
        ("2.64.0", "preprocess_bgr", True),
        ("2.51.0", "segmenters", True),
        ("2.51.0", "was", False),
        ("2.65.0", "preprocess", False),
        ("2.75.0", "segmenters", False),
    ],
)
def test_a_server_that_never_answers_what_a_process_held_is_started_again(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, version: str, model: str, starts_again: bool
) -> None:
    """Models that read images hold requests. With a newer Triton, and for other models, loading again is enough."""
    server = FakeServer(clock)
    server.dead = [model]

    class Outside(old_triton.DeadStubs):
        def look(self) -> list[tuple[str, str]]:
            return [(each, "its process 7 died") for each in server.dead]

    monkeypatch.setattr(watch_module, "DeadStubs", Outside)
    reason = watched(server, 6 * EVERY_S, version)
    assert bool(reason) == starts_again and server.reloads == [model] * (not starts_again)
    if reason:
        assert reason.startswith(f"model {model}: its process 7 died")


@pytest.mark.parametrize(
    ("version", "drains"), [("2.51.0", False), ("2.57.0", False), ("2.58.0", True), ("2.73.0dev", True)]
)
def test_which_triton_answers_what_it_has_begun(version: str, drains: bool) -> None:
    assert old_triton.drains(version) == drains
